//! `incus enroll`: the cluster is made to trust the guardian.

use serde::Serialize;

use super::context::print;
use super::error::Fault;
use super::{Common, EnrollArgs, Exit, Format};
use crate::clock;
use crate::config::Config;
use crate::incus;
use crate::incus::enroll::{Enrolled, Token};

#[derive(Serialize)]
struct EnrollAnswer {
    name: String,
    fingerprint: String,
    already: bool,
    endpoints: Vec<String>,
}

pub(super) fn enroll(common: &Common, args: &EnrollArgs) -> Result<Exit, Fault> {
    let config = Config::load(common.config.as_deref())?.incus;
    let token = Token::parse(&args.token)?;
    let enrolled = incus::block_on(incus::enroll::enroll(&token, &config, args.force, clock::wall()))??;
    let answer = EnrollAnswer::from(enrolled);
    let text = |answer: &EnrollAnswer| {
        let how =
            if answer.already { "was trusted already; the token was not used" } else { "is trusted now" };
        let endpoints: Vec<_> = answer.endpoints.iter().map(|endpoint| format!("{endpoint:?}")).collect();
        format!(
            "# The certificate {} ({}) {how}.\n[incus]\nendpoints = [{}]\ncertificate = {:?}\nkey = {:?}\n\
             cluster_certificate = {:?}\n",
            answer.fingerprint,
            answer.name,
            endpoints.join(", "),
            config.certificate,
            config.key,
            config.cluster_certificate,
        )
    };
    let format = if common.json { Format::Json } else { common.format };
    print(format, &answer, text)?;
    Ok(Exit::Done)
}

impl From<Enrolled> for EnrollAnswer {
    fn from(enrolled: Enrolled) -> Self {
        Self {
            name: enrolled.name,
            fingerprint: enrolled.fingerprint.to_string(),
            already: enrolled.already,
            endpoints: enrolled.endpoints.iter().map(ToString::to_string).collect(),
        }
    }
}
