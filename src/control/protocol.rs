//! What goes over the control socket: one JSON object a line, a question first, then lines until the last one.

use rbd_guardian_core::guardian::report::Outcome;
use rbd_guardian_core::model::barrier::PoolProof;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::record::FenceRecord;
use rbd_guardian_core::rules::refusal::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is asked: `{"verb":"status"}`, or a request (`{"verb":"fence",…}`).
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// How things stand.
    Status,
    /// To fence or to release.
    Request(Request),
}

/// A line of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlLine {
    /// What happens meanwhile, in words; another line follows.
    Progress(String),
    /// To [`Question::Status`].
    Status(Value),
    /// Fenced and proved.
    Sealed {
        /// As the ledger has it.
        fence: Box<FenceRecord>,
        /// What the PGs proved.
        barrier: Vec<ProvedPool>,
    },
    Released {
        /// As the ledger has it.
        fence: Box<FenceRecord>,
    },
    /// It is in the trail.
    Noted,
    /// Nothing was done, for these reasons.
    Refused(Vec<Reason>),
    /// It cannot be done.
    Failed(String),
    /// This guardian cannot do it now, or leads no more: how far it came is not known.
    Unavailable(String),
    /// Another guardian leads: nothing was begun, and the ledger passes it on.
    Elsewhere(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvedPool {
    pub pool: String,
    /// How many PGs it has.
    pub pgs: u32,
    /// How many answered.
    pub proved: usize,
    /// Which did not, as Ceph prints them.
    pub pending: Vec<String>,
    /// What stood in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable word.
    pub code: String,
    pub reason: String,
}

impl Question {
    /// Reads a line.
    ///
    /// # Errors
    /// What may be asked.
    pub fn parse(line: &str) -> Result<Self, String> {
        let bad = |error: serde_json::Error| {
            format!("not understood ({error}): ask {{\"verb\":\"status\"}}, or to fence or release")
        };
        let value: Value = serde_json::from_str(line).map_err(bad)?;
        if value.get("verb").and_then(Value::as_str) == Some("status") {
            return Ok(Self::Status);
        }
        serde_json::from_value(value).map(Self::Request).map_err(bad)
    }

    /// Writes a line, without its end.
    ///
    /// # Errors
    /// Every type of a line has a JSON form.
    pub fn line(&self) -> serde_json::Result<String> {
        match self {
            Self::Status => Ok(r#"{"verb":"status"}"#.to_owned()),
            Self::Request(request) => serde_json::to_string(request),
        }
    }
}

impl ControlLine {
    /// Does nothing follow?
    pub fn is_last(&self) -> bool {
        match self {
            Self::Progress(_) => false,
            Self::Status(_)
            | Self::Sealed { .. }
            | Self::Released { .. }
            | Self::Noted
            | Self::Refused(_)
            | Self::Failed(_)
            | Self::Unavailable(_)
            | Self::Elsewhere(_) => true,
        }
    }
}

impl From<Outcome> for ControlLine {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Sealed(fence, proofs) => {
                Self::Sealed { fence, barrier: proofs.iter().map(ProvedPool::from).collect() }
            }
            Outcome::Released(fence) => Self::Released { fence },
            Outcome::Refused(refusals) => Self::Refused(refusals.iter().map(Reason::from).collect()),
            Outcome::Noted => Self::Noted,
            Outcome::Failed(why) => Self::Failed(why),
        }
    }
}

impl From<&Refusal> for Reason {
    fn from(refusal: &Refusal) -> Self {
        Self { code: refusal.code().to_owned(), reason: refusal.to_string() }
    }
}

impl From<&PoolProof> for ProvedPool {
    fn from(proof: &PoolProof) -> Self {
        Self {
            pool: proof.pool.name.clone(),
            pgs: proof.pool.pg_num,
            proved: proof.proved(),
            pending: proof.pending_names(),
            trouble: proof.trouble.clone().filter(|_| !proof.is_complete()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbd_guardian_core::model::overrides::Overrides;
    use rbd_guardian_core::model::target::Target;

    #[test]
    fn a_question_is_read_as_it_is_written() {
        let fence = Request::Fence {
            target: Target::Member("n1".to_owned()),
            overrides: Overrides::default(),
            reason: Some("cable".to_owned()),
            by: "root@guard".to_owned(),
        };
        for question in [Question::Status, Question::Request(fence)] {
            assert_eq!(Question::parse(&question.line().unwrap()), Ok(question));
        }
        assert!(Question::parse(r#"{"verb":"explode"}"#).unwrap_err().contains("explode"));
        assert!(Question::parse("status").is_err());
    }
}
