//! The verbs. stdout is the answer, stderr everything else; exit codes are a contract (docs/design.md#command-line).
#![allow(clippy::print_stdout, clippy::print_stderr)] // This module is the program's mouth.

mod answer;
mod context;
mod dispatch;
mod doctor;
mod error;
mod fence;
mod forward;
mod found;
mod gate;
mod incus;
mod ledger;
mod machines;
mod output;
mod plan;
mod progress;
mod release;
mod replay;
mod run;
mod seen;
mod shown;
mod standalone;
mod status;
mod watchers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use rbd_guardian_core::model::addr::{Entry, parse_target};
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::rules::plan::Request;

use crate::ceph::rados::cluster::leave;
use crate::descriptors;
use context::Context;
use error::CliError;
use replay::ReplayArgs;

/// How a verb ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done,
    Failed,
    Usage,
    Pending,
    Refused,
    CannotTell,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Pending => 3,
            Exit::Refused => 4,
            Exit::CannotTell => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(u8::from(exit))
    }
}

/// Makes Ceph refuse a lost Incus member before its instances start elsewhere, and proves it.
///
/// A fenced member's clients are blocklisted, and a fence counts only when each PG of each pool that could hold
/// images has answered with a map that refuses them: then it is `sealed`, and not before.
#[derive(Parser)]
#[command(name = "rbd-guardian", version, max_term_width = 100, after_long_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done and proved
  1  failed (Ceph said no: key, capabilities, a rejected command)
  2  usage or configuration
  3  committed, but the seal is pending: run the same command again, it goes on from there
  4  refused (policy, storm brake, protected address, coverage): nothing was changed
  5  cannot tell (Ceph unreachable, or timed out before the entries were seen): run it again

To begin: `rbd-guardian doctor`, then `rbd-guardian plan MEMBER`; both change nothing.
stdout is the answer, stderr everything else.";

#[derive(Args)]
struct Common {
    /// The guardian's configuration [default: /etc/rbd-guardian/rbd-guardian.toml, if it exists]
    #[arg(short, long, global = true, value_name = "FILE", help_heading = "Common options")]
    config: Option<PathBuf>,
    /// ceph.conf, as Ceph's tools take it
    #[arg(long, global = true, value_name = "FILE", help_heading = "Common options")]
    conf: Option<PathBuf>,
    /// Ceph client name, without `client.` [default: guardian]
    #[arg(long, global = true, value_name = "ID", help_heading = "Common options")]
    id: Option<String>,
    /// Ceph cluster name [default: ceph]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Common options")]
    cluster: Option<String>,
    /// Keyring of the Ceph client
    #[arg(long, global = true, value_name = "FILE", help_heading = "Common options")]
    keyring: Option<PathBuf>,
    /// How to print the answer
    #[arg(short, long, global = true, value_enum, default_value = "table", help_heading = "Common options")]
    format: Format,
    /// The same as --format json
    #[arg(long, global = true, help_heading = "Common options")]
    json: bool,
    /// Bounds the whole command, for example 30s or 5min
    #[arg(long, global = true, value_name = "D", default_value = "60s", value_parser = timeout, help_heading = "Common options")]
    timeout: Duration,
}

impl Common {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Subcommand)]
enum Verb {
    /// The daemon: holds fences, and fences a lost member before its instances start elsewhere
    Run,
    /// Show members, their fences, and whether each fence is proved right now
    Status(StatusArgs),
    /// Show what a fence would do: entries, coverage, refusals; changes nothing
    Plan(PlanArgs),
    /// Blocklist a member or address, and prove that every write of it is refused
    ///
    /// Ends with 0 only when the fence is `sealed`. Interrupted or out of time it says how far it came; the same
    /// command goes on from there.
    Fence(FenceArgs),
    /// Let a fenced host use the storage again; its old client instances never can
    ///
    /// A host that was merely cut off still runs what it ran, and would write again. So this asks you to assert, with
    /// a reason, that it was powered off or rebooted after it was fenced.
    Release(ReleaseArgs),
    /// One sweep: who watches and who has locked each image
    ///
    /// Verdicts: `unused` (no watcher, no lock, which does not prove that nobody writes), `one-member`,
    /// `several-members`, `unknown-address` (of no configured member), `fenced` (a user that the blocklist refuses).
    Watchers(WatchersArgs),
    /// Show what guardians remember together: leader, members, fences, gate, requests
    Ledger(LedgerArgs),
    /// Show what would stop a fence from working here
    ///
    /// Changes nothing. Ends with 1 if anything is marked FAIL.
    Doctor,
    /// Keep Incus from placing instances elsewhere before their member is sealed
    ///
    /// Ends with 3 while a member does not run the gate: run `install` again once it is reachable.
    Gate(GateArgs),
    /// Let the guardian talk to Incus
    Incus(IncusArgs),
    /// Show that this version decides as the daemon did that made a recording
    ///
    /// The daemon records what it takes in and what it decides, and saves that when a fence is refused or breached, when
    /// it crashes, and on SIGUSR1 (`systemctl kill -s USR1 rbd-guardian`), in the folder `daemon.recordings` of its
    /// configuration. This gives the same inputs to a fresh core and compares each decision. It needs no cluster and
    /// changes nothing. Read one with `zcat`: one JSON object a line.
    ///
    /// Ends with 0 if every decision is the same, with 1 at the first that is not (its line and both are printed), with 2 if
    /// the file is no recording or damaged.
    Replay(ReplayArgs),
}

#[derive(Args)]
struct StatusArgs {
    /// Repeat every two seconds until Ctrl-C
    #[arg(long)]
    watch: bool,
}

#[derive(Args)]
struct PlanArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    permits: PermitArgs,
}

#[derive(Args)]
struct FenceArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    permits: PermitArgs,
}

#[derive(Args)]
struct PermitArgs {
    /// Why: recorded and printed with the answer
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    /// Fence what is known, where the host may not be fenced or a source did not answer
    #[arg(long)]
    accept_incomplete: bool,
    /// Go over the storm brake (policy.max_fenced_members) for this one fence
    #[arg(long, requires = "reason")]
    over_brake: bool,
    /// Rely on an entry although a removal of it was never answered. Only if no guardian runs that could still send it
    #[arg(long, requires = "reason")]
    over_doubt: bool,
    /// Fence a member that answers Incus: its guests lose their disks at once
    #[arg(long, requires = "reason")]
    although_reachable: bool,
    /// Fence a host address at which no member, client, watcher or lock is known
    #[arg(long, requires = "reason")]
    unknown_address: bool,
}

impl PermitArgs {
    fn overrides(&self) -> Overrides {
        Overrides {
            accept_incomplete: self.accept_incomplete,
            brake: self.over_brake,
            doubt: self.over_doubt,
            reachable: self.although_reachable,
            unknown: self.unknown_address,
        }
    }
}

// Not a doc comment, which would take the brackets for a link.
const ADDRESS_HELP: &str = "A host (10.0.0.5, 10.0.0.5:0/0, [2001:db8::5]:0/0) or one client instance \
                            (10.0.0.5:0/123456); repeatable";

#[derive(Args)]
#[group(required = true, multiple = false)]
struct TargetArgs {
    /// A member, as the configuration names it
    member: Option<String>,
    #[arg(long, value_name = "A", value_parser = parse_target, num_args = 1.., help = ADDRESS_HELP)]
    address: Vec<Entry>,
}

#[derive(Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["member", "fence"])))]
struct ReleaseArgs {
    /// A member, as the configuration names it
    member: Option<String>,
    /// The ID that `fence` printed
    #[arg(long, value_name = "ID")]
    fence: Option<String>,
    /// You assert that the host was powered off or rebooted after it was fenced: nothing of its old life runs
    #[arg(long, requires = "reason")]
    assert_powered_off: bool,
    /// What you saw, and who you are: recorded and printed with the answer
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
}

#[derive(Args)]
struct WatchersArgs {
    /// Only this pool; repeatable
    #[arg(long = "pool", value_name = "P")]
    pools: Vec<String>,
}

#[derive(Args)]
struct GateArgs {
    #[command(subcommand)]
    verb: GateVerb,
}

#[derive(Subcommand)]
enum GateVerb {
    /// Install the placement scriptlet, around the site's own if there is one
    Install {
        /// Replace a gate that was changed by hand
        #[arg(long)]
        force: bool,
    },
    /// Show which members run it, its keys, and the site's scriptlet in it
    Show,
    /// Put the site's own scriptlet back and remove all keys, the seals too
    ///
    /// Refused while a member is fenced, or while that is unknown, without --force and --reason.
    Remove {
        /// Also a gate that was changed by hand, and also while a member is fenced (then with --reason)
        #[arg(long)]
        force: bool,
        /// Why: recorded
        #[arg(long, value_name = "TEXT", value_parser = reason)]
        reason: Option<String>,
    },
}

#[derive(Args)]
struct IncusArgs {
    #[command(subcommand)]
    verb: IncusVerb,
}

#[derive(Subcommand)]
enum IncusVerb {
    /// Have the cluster trust the guardian, by a token of `incus config trust add rbd-guardian`
    ///
    /// Makes key and certificate where there are none, saves the cluster's certificate, and prints the lines for the
    /// configuration. Files go where [incus] of the configuration says. Run again after a failure it goes on.
    Enroll(EnrollArgs),
}

#[derive(Args)]
struct EnrollArgs {
    /// What `incus config trust add rbd-guardian` printed; without it, or with `-`, it is read from standard input.
    /// Other users of this host see what is given here
    token: Option<String>,
    /// Read it from this file
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<std::path::PathBuf>,
    /// Make a new key and certificate, and replace the cluster's certificate
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct LedgerArgs {
    #[command(subcommand)]
    what: Option<LedgerVerb>,
}

#[derive(Subcommand)]
enum LedgerVerb {
    /// All records (what `ledger` alone does)
    Show,
    /// What was done, by whom and why; the newest last
    Audit {
        /// Only so many
        #[arg(long, value_name = "N")]
        last: Option<u64>,
    },
}

/// Runs the verb the command line names.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    descriptors::raise();
    let exit = output::keep().map_err(CliError::from).and_then(|()| run(&cli)).unwrap_or_else(|fault| {
        output::say(&fault.to_string());
        fault.exit()
    });
    leave(exit.into())
}

/// Help and version go to stdout. A wrong command line gets one line: an operator reads it in a log or in a hurry.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.render().to_string();
    let text = text.trim_start_matches("error: ").replace("For more information, try '--help'.", "");
    let (what, usage) = text.split_once("Usage: ").unwrap_or((&text, ""));
    let line = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.replace(" tip: ", "; tip: ");
    let usage =
        usage.lines().next().map_or_else(String::new, |usage| format!("; usage: {}", optional(usage)));
    eprintln!("rbd-guardian: {line}{usage}");
    Exit::Usage.into()
}

/// A usage line names the common options that were given, as if they were required.
fn optional(usage: &str) -> String {
    const COMMON: [&str; 8] = [
        "--config <FILE>",
        "--conf <FILE>",
        "--id <ID>",
        "--cluster <NAME>",
        "--keyring <FILE>",
        "--format <FORMAT>",
        "--timeout <D>",
        "--json",
    ];
    let shorter =
        COMMON.iter().fold(usage.to_owned(), |usage, option| usage.replace(&format!(" {option}"), ""));
    if shorter == usage || shorter.contains("[OPTIONS]") {
        return shorter;
    }
    shorter.replacen("rbd-guardian", "rbd-guardian [OPTIONS]", 1)
}

fn run(cli: &Cli) -> Result<Exit, CliError> {
    let context = || Context::open(&cli.common);
    match &cli.verb {
        Verb::Run => run::run(&cli.common),
        Verb::Status(args) => status::run(&cli.common, args),
        Verb::Plan(args) => plan::run(&context()?, &args.target.request(args.permits.overrides())),
        Verb::Fence(args) => fence::run(&cli.common, args),
        Verb::Release(args) => release::run(&cli.common, args),
        Verb::Watchers(args) => watchers::run(&context()?, args),
        Verb::Ledger(args) => ledger::run(&context()?, args),
        Verb::Doctor => doctor::run(&context()?),
        Verb::Gate(args) => gate::run(&cli.common, args),
        Verb::Replay(args) => replay::run(&cli.common, args),
        Verb::Incus(IncusArgs { verb: IncusVerb::Enroll(args) }) => incus::enroll(&cli.common, args),
    }
}

impl TargetArgs {
    fn target(&self) -> Target {
        match &self.member {
            Some(name) => Target::Member(name.clone()),
            None => Target::Addresses(self.address.iter().copied().collect()),
        }
    }

    fn request(&self, overrides: Overrides) -> Request {
        Request { overrides, ..Request::of(self.target()) }
    }
}

fn reason(text: &str) -> Result<String, String> {
    rbd_guardian_core::model::overrides::reason(Some(text))
        .map(str::to_owned)
        .ok_or_else(|| "a reason has words".to_owned())
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| format!("{error}; write 30s or 5min"))?;
    let bounds = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
    if bounds.contains(&timeout) { Ok(timeout) } else { Err("between 1s and 24h".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_line_shows_no_common_option_as_required() {
        let words = ["rbd-guardian", "--config", "x", "--json", "--timeout", "3s", "fence", "--forse"];
        let text = Cli::try_parse_from(words).err().unwrap().render().to_string();
        let (_, usage) = text.split_once("Usage: ").unwrap();
        assert!(usage.contains("--format <FORMAT>"), "clap does not do it any more: {usage}");
        let shown = optional(usage.lines().next().unwrap());
        assert!(
            !shown.contains("--format") && !shown.contains("--json") && shown.contains("[OPTIONS]"),
            "{shown}"
        );
        assert!(shown.contains("fence"), "{shown}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
