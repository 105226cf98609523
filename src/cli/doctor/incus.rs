//! What Incus shows that would stop a fence sooner or later: users of storage pools, and the cluster's certificate.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::super::context::Context;
use super::super::machines;
use super::check::{Check, CheckVerdict, check};
use crate::clock;
use crate::deadline::within;
use crate::incus::client::Client;
use crate::incus::error::IncusError;
use crate::incus::options::IncusConfig;
use crate::incus::{self, api, tls};

/// `doctor` warns of a certificate this long before its end.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// What it shows, where it is configured.
pub(super) fn checks(context: &Context) -> Vec<Check> {
    if context.config.incus.endpoints.is_empty() {
        return Vec::new();
    }
    let unread = |title, what, why| {
        vec![check(title, CheckVerdict::Warn, format!("unknown, because {what} not read: {why}"))]
    };
    let mut checks = match get::<Vec<api::Pool>>(context, "/1.0/storage-pools?recursion=1") {
        Ok(pools) => users(&pools),
        Err(why) => unread(USERS, "the storage pools were", why),
    };
    checks.extend(match get::<api::Server>(context, "/1.0") {
        Ok(server) => certificate(&server, &context.config.incus, clock::wall().as_duration().unsigned_abs()),
        Err(why) => unread(CERTIFICATE, "Incus's configuration was", why),
    });
    checks.extend(identities(context));
    checks
}

/// Can a member be released by a proof, once it was fenced?
fn identities(context: &Context) -> Vec<Check> {
    let read = || -> Result<_, String> {
        let client = Client::open(&context.config.incus).map_err(|fault| fault.to_string())?;
        let left = context.deadline.left().map_err(|late| late.to_string())?;
        let asked = within(left, async move { machines::shown(&client).await });
        let answer = incus::block_on(asked).map_err(|error| error.to_string())?;
        answer.map_err(|late| late.to_string())?.map_err(|error| error.to_string())
    };
    let told = match read() {
        Ok(told) => told,
        Err(why) => {
            let detail = format!("unknown, because the members were not read: {why}");
            return vec![check(MACHINES, CheckVerdict::Warn, detail)];
        }
    };
    let one = |(name, shown): (String, machines::ShownMachine)| {
        let title = format!("{MACHINES} of {name}");
        match shown.warning(&name) {
            Some(warning) => check(title, CheckVerdict::Warn, warning),
            None => check(title, CheckVerdict::Ok, "its API shows an identity that no other member has"),
        }
    };
    told.into_iter().map(one).collect()
}

const MACHINES: &str = "machine identity";
const USERS: &str = "Incus's Ceph users";
const CERTIFICATE: &str = "Incus's certificate";

fn get<T: DeserializeOwned>(context: &Context, path: &'static str) -> Result<T, String> {
    let client = Client::open(&context.config.incus).map_err(|fault| fault.to_string())?;
    let left = context.deadline.left().map_err(|late| late.to_string())?;
    let asked = within(left, async move { client.get(path).await });
    let answer = incus::block_on(asked).map_err(|error| error.to_string())?;
    answer.map_err(|late| late.to_string())?.map_err(|error: IncusError| error.to_string())
}

/// Will the cluster show another certificate soon? `now`: since 1970.
fn certificate(server: &api::Server, config: &IncusConfig, now: Duration) -> Vec<Check> {
    let file = config.cluster_certificate.display();
    let mut checks = Vec::new();
    if server.config.get("acme.domain").is_some_and(|domain| !domain.is_empty()) {
        let detail = format!(
            "acme.domain is set: Incus replaces its certificate by itself, and guardians cannot connect to Incus until the new one is in \
             {file}. Unset it, and replace the certificate by hand as docs/operations.md says"
        );
        checks.push(check(CERTIFICATE, CheckVerdict::Warn, detail));
    }
    checks.push(match tls::is_over(server.environment.certificate.as_bytes(), now + SOON) {
        None => check(CERTIFICATE, CheckVerdict::Warn, "when it expires is unknown: Incus did not show it"),
        Some(false) => check(CERTIFICATE, CheckVerdict::Ok, "valid for at least 30 days"),
        Some(true) => {
            let detail = format!(
                "expires within 30 days: append the new certificate to {file} on each guardian's host, then `incus cluster update-certificate` \
                 (docs/operations.md)"
            );
            check(CERTIFICATE, CheckVerdict::Warn, detail)
        }
    });
    checks
}

fn users(pools: &[api::Pool]) -> Vec<Check> {
    let one = |pool: &api::Pool| {
        let user = pool.config.get("ceph.user.name").map_or("admin", String::as_str);
        let osd_pool = pool.config.get("ceph.osd.pool_name").map_or("POOL", String::as_str);
        let name = &pool.name;
        if user != "admin" {
            return check(USERS, CheckVerdict::Ok, format!("storage pool {name} uses client.{user}"));
        }
        let detail = format!(
            "storage pool {name} uses client.admin, so each member may lift its own fence and ask guardians to fence others. \
             Create a key: ceph auth get-or-create client.incus mon 'profile rbd' osd 'profile rbd pool={osd_pool}' mgr 'profile rbd \
             pool={osd_pool}'; copy its keyring to each member; then: incus storage set {name} ceph.user.name incus"
        );
        check(USERS, CheckVerdict::Warn, detail)
    };
    pools.iter().filter(|pool| pool.driver == "ceph").map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use serde_json::json;

    #[test]
    fn a_storage_pool_without_a_user_of_its_own_uses_admin_and_each_is_judged() {
        let pools = json!([
            {"name": "remote", "driver": "ceph", "config": {"ceph.osd.pool_name": "vms"}},
            {"name": "named", "driver": "ceph", "config": {"ceph.user.name": "admin"}},
            {"name": "own", "driver": "ceph", "config": {"ceph.user.name": "incus"}},
            {"name": "local", "driver": "dir", "config": {}},
        ]);
        let pools: Vec<api::Pool> = serde_json::from_value(pools).unwrap();
        let checks = users(&pools);
        let warned: Vec<bool> = checks.iter().map(|check| check.verdict == CheckVerdict::Warn).collect();
        assert_eq!(warned, [true, true, false]);
        assert!(checks[0].detail.contains("profile rbd pool=vms"), "{}", checks[0].detail);
    }

    #[test]
    fn a_certificate_that_ends_soon_or_that_acme_replaces_is_told() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["cluster".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2030, 1, 1));
        let pem = params.self_signed(&key).unwrap().pem();
        let server = |domain: &str| -> api::Server {
            let value = json!({"config": {"acme.domain": domain}, "environment": {"certificate": pem}});
            serde_json::from_value(value).unwrap()
        };
        let at = |year: i16, month: i8| {
            let date = jiff::civil::date(year, month, 15).to_zoned(jiff::tz::TimeZone::UTC).unwrap();
            date.timestamp().as_duration().unsigned_abs()
        };
        let told = |domain: &str, now| {
            let checks = certificate(&server(domain), &IncusConfig::default(), now);
            checks.iter().map(|check| (check.verdict, check.detail.clone())).collect::<Vec<_>>()
        };
        assert_eq!(told("", at(2029, 11)), [(CheckVerdict::Ok, "valid for at least 30 days".to_owned())]);
        let soon = told("", at(2029, 12));
        assert!(soon[0].0 == CheckVerdict::Warn && soon[0].1.contains("update-certificate"), "{soon:?}");
        let acme = told("incus.example", at(2029, 1));
        assert!(acme.len() == 2 && acme[0].1.contains("acme.domain is set"), "{acme:?}");
    }
}
