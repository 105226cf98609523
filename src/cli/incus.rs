//! `incus enroll`: the cluster is made to trust the guardian.

use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use serde::Serialize;

use super::context::print;
use super::error::CliError;
use super::{Common, EnrollArgs, Exit, Format};
use crate::clock;
use crate::config::Config;
use crate::incus;
use crate::incus::enroll::{EnrollError, Enrolled, Token};

/// A token is some hundred bytes.
const LONGEST: u64 = 64 * 1024;

#[derive(Serialize)]
struct EnrollAnswer {
    name: String,
    fingerprint: String,
    already: bool,
    endpoints: Vec<String>,
}

pub(super) fn enroll(common: &Common, args: &EnrollArgs) -> Result<Exit, CliError> {
    let config = Config::load(common.config.as_deref())?.incus;
    let text = token_text(args)?;
    // `incus config trust add` prints a line before it.
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let token = Token::parse(&text).or_else(|error| Token::parse(last).map_err(|_| error))?;
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

/// The token, from where no other user sees it unless it was given as an argument.
fn token_text(args: &EnrollArgs) -> Result<String, EnrollError> {
    let named = args.token_file.as_deref();
    if let Some(token) = args.token.as_ref().filter(|token| *token != "-") {
        return Ok(token.clone());
    }
    let read = match named.filter(|file| *file != Path::new("-")) {
        Some(file) => fs::read_to_string(file),
        None => {
            let input = io::stdin();
            if input.is_terminal() {
                let prompt = b"Token (`incus config trust add rbd-guardian` prints one): ";
                // Without the prompt it is read all the same.
                let _ = io::stderr().write_all(prompt);
            }
            let mut text = String::new();
            let mut bounded = input.lock().take(LONGEST);
            let read = if io::stdin().is_terminal() {
                bounded.read_line(&mut text)
            } else {
                bounded.read_to_string(&mut text)
            };
            read.map(|_| text)
        }
    };
    let from = named.map_or_else(|| "standard input".to_owned(), |file| file.display().to_string());
    read.map_err(|error| EnrollError::NoToken { from, error })
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
