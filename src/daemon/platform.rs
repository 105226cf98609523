//! What is asked of Incus, in the words of the core.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;

use crate::domain::view::{InstanceId, MemberState, View};
use crate::incus::client::{Accepted, Client};
use crate::incus::{api, gate, read};

/// How long an instance may take to start before that counts as failed.
const START_SECONDS: u64 = 30;

pub(super) async fn view(incus: &Client, before: Option<&View>) -> Result<View, String> {
    read::read(incus, before).await.map(|reading| reading.view).map_err(|error| error.to_string())
}

pub(super) async fn member_state(incus: &Client, member: &str) -> Result<MemberState, String> {
    read::member_state(incus, member).await.map_err(|error| error.to_string())
}

/// Incus tells the networks' sizes only of networks that it manages: each address stands for itself.
pub(super) async fn networks(incus: &Client, member: &str) -> Result<BTreeSet<IpNet>, String> {
    let addresses = read::member_addresses(incus, member).await.map_err(|error| error.to_string())?;
    Ok(addresses.into_iter().map(IpNet::from).collect())
}

pub(super) async fn put_gate(
    incus: &Client,
    keys: &BTreeMap<String, String>,
    epoch: u64,
) -> Result<(), String> {
    gate::put_keys(incus, keys, epoch).await.map_err(|error| error.to_string())
}

pub(super) async fn push_gate(incus: &Client) -> Result<(), String> {
    gate::push(incus).await.map_err(|error| error.to_string())
}

/// Starts an instance and waits until it runs. One that runs already is no error.
pub(super) async fn start(incus: &Client, instance: &InstanceId) -> Result<(), String> {
    let path = format!("/1.0/instances/{}/state?project={}", instance.name, instance.project);
    let body = json!({"action": "start", "timeout": START_SECONDS});
    let accepted = incus.put(&path, &body, None).await.map_err(|error| error.to_string())?;
    let Accepted::Operation(operation) = accepted else { return Ok(()) };
    let operation = operation.split('?').next().unwrap_or_default();
    let wait = format!("{operation}/wait?timeout={START_SECONDS}");
    let patient = incus.within(Duration::from_secs(START_SECONDS) + incus.timeout());
    let ended: api::Operation = patient.get(&wait).await.map_err(|error| error.to_string())?;
    match ended.status.as_str() {
        "Success" => Ok(()),
        _ if ended.err.contains("already running") => Ok(()),
        status => Err(format!("{status}: {}", ended.err)),
    }
}
