//! What a daemon does for a verb; and without one, what the verb does in its place.

use std::sync::Arc;
use std::time::Duration;

use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::record::FenceRecord;
use rbd_guardian_core::rules::operator_request::{is_named, is_of};
use serde::Serialize;
use serde_json::Value;

use crate::cli::context::{Context, interrupted, print};
use crate::cli::error::CliError;
use crate::cli::forward::{ForwardOutcome, RequestStage, TIDY, came, pass};
use crate::cli::output::say;
use crate::cli::{Common, Exit, Format, run};
use crate::config::{Config, identity};
use crate::control::protocol::{ControlLine, Question, Reason};
use crate::control::socket::{AskError, ask};
use crate::daemon;
use crate::deadline::{Deadline, DeadlineError};
use crate::ledger::{Ledger, LedgerOpenError, LedgerReadError};

/// Who answers a verb.
pub(super) enum VerbOutcome {
    /// A daemon, or this process in its place.
    Answered(ControlLine),
    /// The time was over before the daemon had an answer; its entries stand, and it goes on.
    Underway {
        /// As it is now.
        fence: Box<FenceRecord>,
        /// PGs that have not answered.
        pending: Vec<String>,
        /// What ended the wait.
        why: String,
        /// Who goes on with it.
        on: &'static str,
    },
    /// There is no ledger: the verb does it with the storage alone.
    Alone(Box<Context>),
}

/// What a verb has before it knows who answers it.
pub(super) struct VerbStart<'c> {
    common: &'c Common,
    pub(super) config: Config,
    pub(super) deadline: Deadline,
}

impl<'c> VerbStart<'c> {
    pub(super) fn new(common: &'c Common) -> Result<Self, CliError> {
        let config = Config::load(common.config.as_deref())?;
        Ok(Self { common, config, deadline: Deadline::after(common.timeout, interrupted()?) })
    }

    /// Has a request done: by the daemon of this host, if it leads; by the one that leads elsewhere, through the ledger;
    /// where nobody leads, by taking the lead, if guardians keep a ledger here; else by nobody but the verb itself.
    pub(super) fn request(self, request: Request) -> Result<VerbOutcome, CliError> {
        let question = Question::Request(request.clone());
        match ask(&self.config.daemon.socket, &question, &self.deadline, &mut say) {
            Ok(None | Some(ControlLine::Elsewhere(_))) => {}
            Ok(Some(line)) => return Ok(VerbOutcome::Answered(line)),
            Err(AskError::Late(late)) => return self.handed(&request, late),
            Err(error) => return Err(error.into()),
        }
        let (common, config, deadline) = (self.common, self.config.clone(), self.deadline.clone());
        let context = Context::connect(common, self.config, self.deadline)?;
        let Some(ledger) = kept(&context)? else { return Ok(VerbOutcome::Alone(Box::new(context))) };
        loop {
            match pass(&context, &ledger, request.clone())? {
                ForwardOutcome::Answered(line) => return Ok(VerbOutcome::Answered(line)),
                ForwardOutcome::Underway { fence, why } => {
                    return Ok(VerbOutcome::Underway { fence, pending: Vec::new(), why, on: ON_DAEMON });
                }
                ForwardOutcome::Nobody => {}
            }
            let (origin, config) = (run::origin(common, &config), config.clone());
            let (cluster, request) = (context.cluster.clone(), request.clone());
            let ended =
                daemon::run_one_request(origin, config, cluster, request.clone(), &deadline, &mut say)?;
            match ended {
                // Another guardian became the leader first.
                Ok(ControlLine::Elsewhere(_)) => {}
                Ok(ControlLine::Unavailable(why)) => return broken_off(&ledger, &request, why),
                Ok(line) => return Ok(VerbOutcome::Answered(line)),
                Err(late) => return broken_off(&ledger, &request, late.to_string()),
            }
        }
    }

    /// The time is over, and the daemon of this host has the request: how far it came. A request goes on when whoever
    /// asked has gone.
    fn handed(&self, request: &Request, late: DeadlineError) -> Result<VerbOutcome, CliError> {
        let moment = Deadline::after(GLANCE, Arc::default());
        let status = ask(&self.config.daemon.socket, &Question::Status, &moment, &mut |_| {});
        let Ok(Some(ControlLine::Status(status))) = status else {
            let state = ", though it does not answer now".to_owned();
            return Err(CliError::Handed { late, state });
        };
        let is = |fence: &FenceRecord| match request {
            Request::Fence { target, .. } => is_of(fence, target),
            Request::Release { fence: name, .. } => is_named(fence, name),
            Request::Note { .. } | Request::Disarm { .. } | Request::Arm { .. } => false,
        };
        let fences = status["fences"].as_array().into_iter().flatten();
        let mut all = fences.filter_map(|fence| Some((from_record(fence)?, fence)));
        let Some((fence, shown)) = all.find(|(fence, _)| is(fence)) else {
            return Err(CliError::Handed { late, state: String::new() });
        };
        let pending = serde_json::from_value(shown["pending"].clone()).unwrap_or_default();
        if matches!(request, Request::Fence { .. }) && fence.state.stands() {
            return Ok(VerbOutcome::Underway {
                fence: Box::new(fence),
                pending,
                why: late.to_string(),
                on: ON_DAEMON,
            });
        }
        Err(CliError::Handed { late, state: format!(": it is {}", fence.state) })
    }

    /// See [`daemon_status`].
    pub(super) fn status(&self) -> Result<Option<Value>, CliError> {
        daemon_status(&self.config, &self.deadline)
    }

    pub(super) fn context(self) -> Result<Context, CliError> {
        Context::connect(self.common, self.config, self.deadline)
    }
}

/// What the daemon of this host knows: everything if it leads, else who does. `None` if no daemon answers.
pub(super) fn daemon_status(config: &Config, deadline: &Deadline) -> Result<Option<Value>, CliError> {
    match ask(&config.daemon.socket, &Question::Status, deadline, &mut say)? {
        Some(ControlLine::Status(status)) => Ok(Some(status)),
        Some(_) | None => Ok(None),
    }
}

/// The request that this process did itself ended without an answer. The ledger says how far it came.
fn broken_off(ledger: &Ledger, request: &Request, why: String) -> Result<VerbOutcome, CliError> {
    let moment = Deadline::after(TIDY, Arc::default());
    let Ok(snapshot) = ledger.read(&moment) else { return Err(CliError::MayBePassed { why }) };
    match came(request, snapshot.records()) {
        RequestStage::Stands(fence) => {
            Ok(VerbOutcome::Underway { fence, pending: Vec::new(), why, on: ON_NEXT })
        }
        RequestStage::Intended => Err(CliError::Intended { why }),
        RequestStage::Releasing => Err(CliError::Releasing { why }),
        RequestStage::Nowhere => Err(CliError::NotBegun { why }),
    }
}

const ON_DAEMON: &str = "the leading guardian continues with it";
const ON_NEXT: &str = "no guardian leads now: the next leader continues with it, or run the command again";

fn from_record(fence: &Value) -> Option<FenceRecord> {
    serde_json::from_value(fence.clone()).ok()
}

/// Where guardians keep what they remember; `None` where none has ever led, else nothing is done behind the ledger's
/// back.
fn kept(context: &Context) -> Result<Option<Ledger>, CliError> {
    let watched = !context.config.incus.endpoints.is_empty();
    let ledger = match Ledger::open(&context.cluster, &context.config.ledger, &context.deadline) {
        Ok(ledger) => ledger,
        Err(LedgerOpenError::NoPool { .. }) if !watched => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let within = if watched { context.deadline.clone() } else { context.deadline.at_most(GLANCE) };
    match ledger.glance(&within) {
        Ok(snapshot) => Ok((watched || snapshot.records().leader.is_some()).then_some(ledger)),
        Err(error) if watched => Err(error.into()),
        Err(error @ LedgerReadError::TooLarge { .. }) => Err(error.into()),
        // A key that is for fences alone, as it was before there were ledgers; or one that is fenced itself, which the
        // plan refuses in better words.
        Err(
            LedgerReadError::Denied { .. }
            | LedgerReadError::Blocklisted { .. }
            | LedgerReadError::Failed { .. },
        ) => Ok(None),
        // An operator without Incus has only this verb: it must not wait for what it may never have used.
        Err(error @ LedgerReadError::Silent { .. }) => {
            say(&format!("{error}; continuing with Ceph alone"));
            Ok(None)
        }
    }
}

/// How long a ledger is looked at that perhaps nobody ever wrote.
const GLANCE: Duration = Duration::from_secs(2);

/// `root@guard`: for the trail.
pub(super) fn operator() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let user = user.map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name);
    format!("{user}@{}", identity::host().unwrap_or_else(|_| "an unknown host".to_owned()))
}

/// What is printed where nothing was done.
#[derive(Serialize)]
struct RefusedAnswer {
    state: &'static str,
    member: Option<String>,
    refusals: Vec<Reason>,
}

/// Prints every reason, and that nothing was changed.
pub(super) fn refuse(
    format: Format,
    member: Option<String>,
    reasons: impl IntoIterator<Item = Reason>,
) -> Result<Exit, CliError> {
    let refusals: Vec<Reason> = reasons.into_iter().collect();
    if let [only] = &refusals[..] {
        say(&format!("refused: {}; nothing was changed", only.reason));
    } else {
        for reason in &refusals {
            say(&format!("refused: {}", reason.reason));
        }
        say("nothing was changed");
    }
    match format {
        Format::Json => {
            print(format, &RefusedAnswer { state: "refused", member, refusals }, |_| String::new())?;
        }
        Format::Table => {}
    }
    Ok(Exit::Refused)
}

/// An answer that is not the one that was wished for: prints what it says; the exit code.
pub(super) fn otherwise(
    common: &Common,
    member: Option<String>,
    line: ControlLine,
) -> Result<Exit, CliError> {
    match line {
        ControlLine::Refused(reasons) => refuse(common.format(), member, reasons),
        ControlLine::Failed(why) => {
            say(&why);
            Ok(Exit::Failed)
        }
        ControlLine::Unavailable(why) | ControlLine::Elsewhere(why) => {
            say(&why);
            Ok(Exit::CannotTell)
        }
        // Each verb takes its own.
        ControlLine::Progress(_)
        | ControlLine::Status(_)
        | ControlLine::Sealed { .. }
        | ControlLine::Released { .. }
        | ControlLine::Noted => Ok(Exit::Done),
    }
}
