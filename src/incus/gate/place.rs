//! Where the gate stands: what each member has, and putting it there.
//!
//! A member that was not reached when the scriptlet changed goes on running what it ran; yet with the next change of
//! *any* key it shows the new text in `GET /1.0`, without loading it (api_1.0.go:445-500, 1006; seen on 6.0.4). So what
//! a member shows proves nothing: it is asked for a placement that only the gate can refuse in that way. And the same
//! text sent once more is loaded by nobody, so that each sending has to differ.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use rbd_guardian_core::model::incus_snapshot::MemberStatus;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use super::refusal::loaded;
use super::{Marker, Scriptlet};
use crate::incus::api::{self, Server};
use crate::incus::client::Client;
use crate::incus::endpoint::Endpoint;
use crate::incus::error::{IncusError, RequestError};
use crate::incus::path::ApiPath;

/// What the gate needs to know what it refuses: 6.0.3 and 6.6, which also ask it about a move to a named target.
pub const EXTENSION: &str = "instances_scriptlet_get_instances_count";
const KEY: &str = "instances.placement.scriptlet";
/// A change of the configuration is answered when every member that counts as alive was told, also one that was lost
/// a moment ago.
const PATIENCE: Duration = Duration::from_secs(40);
/// Never created: a key of its configuration is unknown to Incus, if no gate refuses it before.
const PROBE: &str = "rbd-guardian-probe";
/// What a member says while it starts, with the code 500 (seen on 6.0.4).
const NOT_READY: &str = "Server isn't ready yet";

/// What runs at a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstalledGate {
    /// This gate, intact: it answered.
    Runs(Marker),
    /// The member shows this gate, and does not run it, or it was changed by hand.
    Shows(Marker),
    None,
}

/// What each of these members runs; `Err` for one that could not be asked, with the reason.
///
/// # Errors
/// The members cannot be listed.
pub async fn standings(
    client: &Client,
    of: impl Fn(&String) -> bool,
) -> Result<BTreeMap<String, Result<InstalledGate, String>>, IncusError> {
    let mut members: Vec<api::Member> = client.get("/1.0/cluster/members?recursion=1").await?;
    members.retain(|member| of(&member.server_name));
    let ask = async |member: &api::Member| {
        let standing = match (&member.status, member.url.parse::<Endpoint>()) {
            (MemberStatus::Offline, _) => Err(member.message.clone()),
            (_, Err(why)) => Err(why),
            (_, Ok(endpoint)) => standing(client, member, &endpoint).await,
        };
        (member.server_name.clone(), standing)
    };
    Ok(join_all(members.iter().map(ask)).await.into_iter().collect())
}

/// What the cluster has stored, as far as the member that answers knows.
///
/// # Errors
/// No guardian answers.
pub async fn stored(client: &Client) -> Result<(Server, Scriptlet), IncusError> {
    let server: Server = client.get("/1.0").await?;
    let scriptlet = Scriptlet::parse(server.scriptlet());
    Ok((server, scriptlet))
}

/// Stores a scriptlet (none: ""). The members that are reached load it, if it differs from what was stored.
///
/// Not while one that counts as alive is silent: Incus 6.0.4 takes a change back that it cannot tell to such a one, and
/// with it every other key of the cluster and of the member that was asked, their addresses included (api_1.0.go:
/// `Replace` in the reverts of `doApi10Update`; seen in the lab as "No local address set", mended upstream).
///
/// # Errors
/// See [`Client::patch`]; whatever it says, read the standings afterwards.
pub async fn push(client: &Client, text: &str) -> Result<(), IncusError> {
    let (members, here) = client.settle::<Vec<api::Member>>("/1.0/cluster/members?recursion=1").await?;
    let alive = members.iter().filter(|member| member.status != MemberStatus::Offline);
    let ask = async |member: &api::Member| {
        let path = ApiPath::of(&[]).at(&member.server_name).text();
        let IncusError { endpoint, request, cause } = here.get::<Server>(&path).await.err()?;
        let cause = RequestError::Withheld { member: member.server_name.clone(), why: cause.to_string() };
        Some(IncusError { endpoint, request, cause })
    };
    if let Some(silent) = join_all(alive.map(ask)).await.into_iter().flatten().next() {
        return Err(silent);
    }
    here.within(PATIENCE).patch("/1.0", &json!({ "config": { KEY: text } }), None).await.map(|_| ())
}

/// A name for a sending that no other has.
///
/// # Errors
/// The system has no random numbers.
pub fn new_push() -> std::io::Result<String> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| std::io::Error::other("no random numbers"))?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}

async fn standing(
    client: &Client,
    member: &api::Member,
    endpoint: &Endpoint,
) -> Result<InstalledGate, String> {
    let unix = client.endpoints().iter().all(|endpoint| matches!(endpoint, Endpoint::Unix(_)));
    // Without a certificate only the member of this host can be asked.
    let own = if unix { client.clone() } else { client.on(endpoint) };
    let server: Server = own.get("/1.0").await.map_err(|error| error.to_string())?;
    let found = &server.environment.server_name;
    if *found != member.server_name {
        return Err(format!("{found} answered in its place: incus.endpoints should be https"));
    }
    let Scriptlet::Gate { marker, intact, .. } = Scriptlet::parse(server.scriptlet()) else {
        return Ok(InstalledGate::None);
    };
    let runs = probe(&own).await.map_err(|error| error.to_string())?;
    let stands = intact && runs.as_deref() == Some(marker.push.as_str());
    Ok(if stands { InstalledGate::Runs(marker) } else { InstalledGate::Shows(marker) })
}

/// Which gate the member runs: the name of its sending.
async fn probe(own: &Client) -> Result<Option<String>, IncusError> {
    let request = json!({
        "name": PROBE, "type": "container", "source": { "type": "none" }, "profiles": [],
        "config": { "user.rbd-guardian.probe": "1", "rbd-guardian.probe": "unknown to Incus" },
    });
    // It goes on, and ends with the unknown key.
    let Err(error) = own.post("/1.0/instances", &request).await else { return Ok(None) };
    let RequestError::Status { code, message } = &error.cause else { return Err(error) };
    match loaded(message) {
        Some(push) => Ok(Some(push.to_owned())),
        // It starts, and tells nothing of the gate.
        None if *code == 503 || message.contains(NOT_READY) => Err(error),
        None => Ok(None),
    }
}
