//! The verbs. stdout is the answer, stderr everything else; exit codes are a contract (docs/design.md#command-line).

mod answer;
mod config;
mod context;
mod disarm;
mod dispatch;
mod doctor;
#[cfg(test)]
mod documented;
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
use rbd_guardian_core::rules::plan::PlanRequest;

use crate::ceph::apart;
use crate::ceph::rados::cluster::{Options, leave};
use crate::descriptors;
use context::Context;
use error::CliError;
use output::tell;
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
/// A fence blocklists every Ceph client of the member. It is `sealed` once each PG of each pool that could hold images
/// has answered with an osdmap that refuses these clients.
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
  1  failed (Ceph refused: key, capabilities, a rejected command)
  2  usage or configuration
  3  committed, but some PGs have not answered: run the same command again to continue
  4  refused (policy, storm brake, protected address, coverage): nothing was changed
  5  unknown (Ceph is unreachable, or the time ran out before the entries were seen): run it again

Begin with `rbd-guardian doctor`, then `rbd-guardian plan MEMBER`: neither changes anything.
The answer goes to standard output, everything else to standard error.";

#[derive(Args)]
struct Common {
    /// The guardian's configuration file [default: /etc/rbd-guardian/rbd-guardian.toml, if it exists]
    #[arg(short, long, global = true, value_name = "FILE", help_heading = "Common options")]
    config: Option<PathBuf>,
    /// Path of ceph.conf [default: $CEPH_CONF, or /etc/ceph/CLUSTER.conf]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Common options")]
    conf: Option<PathBuf>,
    /// Ceph client name, without `client.` [default: guardian]
    #[arg(long, global = true, value_name = "ID", help_heading = "Common options")]
    id: Option<String>,
    /// Ceph cluster name [default: ceph]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Common options")]
    cluster: Option<String>,
    /// Path of the Ceph client's keyring [default: the one that ceph.conf names]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Common options")]
    keyring: Option<PathBuf>,
    /// How to print the answer
    #[arg(short, long, global = true, value_enum, default_value = "table", help_heading = "Common options")]
    format: Format,
    /// The same as --format json
    #[arg(long, global = true, help_heading = "Common options")]
    json: bool,
    /// Time limit for the whole command, for example 30s or 5min
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
    /// Run the daemon: it fences lost members before their instances start elsewhere, and holds fences
    Run,
    /// Show members, their fences, and whether all PGs refuse each fenced member now
    Status(StatusArgs),
    /// Show what a fence would do (entries, coverage, refusals) without changing anything
    Plan(PlanArgs),
    /// Blocklist a member or an address, and prove that every write from it is refused
    ///
    /// The exit code is 0 only if the fence is `sealed`. If the command is interrupted or runs out of time, it says how far
    /// the fence came. Run the same command again to continue it.
    Fence(FenceArgs),
    /// Let a fenced host use the storage again; the client instances it had stay refused
    ///
    /// A host that was only cut off from the network still runs its instances, which would write again. Therefore you have
    /// to assert, with a reason, that the host was powered off or rebooted after it was fenced.
    Release(ReleaseArgs),
    /// Show which clients watch and lock each image
    ///
    /// Verdicts: `unused` (no watcher and no lock, which does not prove that no client writes), `one-member`,
    /// `several-members`, `unknown-address` (a client at an address of no known member), `fenced` (a client that the blocklist
    /// refuses).
    Watchers(WatchersArgs),
    /// Show the records that all guardians share: leader, members, fences, gate, requests
    Ledger(LedgerArgs),
    /// Check everything that could keep a fence from working here
    ///
    /// Changes nothing. The exit code is 1 if a check is marked FAIL.
    Doctor,
    /// Keep Incus from placing instances elsewhere before their member is sealed
    ///
    /// The exit code is 3 while a member does not run the gate: run `gate install` again once the member is reachable.
    Gate(GateArgs),
    /// Set up the guardian's access to Incus
    Incus(IncusArgs),
    /// Let no fence begin by itself for a while, for planned work on the network
    ///
    /// Held fences are held, the gate stays closed for members that are not sealed, and `fence` works. It ends by itself, or
    /// with `rbd-guardian arm`. While it lasts, `status` begins with `disarmed` and every guardian raises an alarm.
    Disarm(DisarmArgs),
    /// Let fences begin by themselves again
    Arm(ArmArgs),
    /// Show the configuration
    Config(config::ConfigArgs),
    /// Replay a recording and check that this version makes the same decisions
    ///
    /// The daemon keeps its newest inputs and decisions in memory. It saves them to a file in the folder that
    /// `daemon.recordings` names when a fence is refused or breached, when it crashes, and on SIGUSR1
    /// (`systemctl kill -s USR1 rbd-guardian`). This command gives the same inputs to a fresh core and compares each decision.
    /// It needs no cluster and changes nothing. `zcat FILE` shows a recording as one JSON object a line.
    ///
    /// The exit code is 0 if every decision is the same, 1 at the first difference (its line number and both decisions are
    /// printed), and 2 if the file is not a recording or is damaged.
    Replay(ReplayArgs),
}

#[derive(Args)]
struct StatusArgs {
    /// Repeat every two seconds until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// For monitoring: print the first line and why. The exit code is 0 if the guardians are armed and no critical alarm lasts, 5 if
    /// that is unknown, and 1 otherwise
    #[arg(long, conflicts_with = "watch")]
    check: bool,
}

#[derive(Args)]
struct DisarmArgs {
    /// For how long, for example 2h or 90min; at most 7days
    #[arg(long = "for", value_name = "D", value_parser = disarm::span)]
    span: Duration,
    /// Why you do this: recorded in the ledger and shown wherever the guardians say that they are disarmed
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
}

#[derive(Args)]
struct ArmArgs {
    /// Why you do this: recorded in the ledger
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
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
    /// Why you do this: recorded in the ledger and printed with the answer
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    /// Fence the clients that are known, although the host may not be blocklisted or a source did not answer
    #[arg(long)]
    accept_incomplete: bool,
    /// Fence although policy.max_fenced_members (the storm brake) is reached
    #[arg(long, requires = "reason")]
    over_brake: bool,
    /// Rely on an entry although an earlier removal of it was never acknowledged. Only if no guardian that could still send
    /// that removal is running
    #[arg(long, requires = "reason")]
    over_doubt: bool,
    /// Fence a member that answers Incus: its instances lose their disks at once
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
    /// Name of the member in Incus, or in the configuration
    member: Option<String>,
    #[arg(long, value_name = "A", value_parser = parse_target, num_args = 1.., help = ADDRESS_HELP)]
    address: Vec<Entry>,
}

#[derive(Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["member", "fence"])))]
struct ReleaseArgs {
    /// Name of the member in Incus, or in the configuration
    member: Option<String>,
    /// The ID that `fence` printed
    #[arg(long, value_name = "ID")]
    fence: Option<String>,
    /// You assert that the host was powered off or rebooted after it was fenced: nothing it ran before the fence is still
    /// running
    #[arg(long, requires = "reason")]
    assert_powered_off: bool,
    /// What you saw and who you are: recorded in the ledger and printed with the answer
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
}

#[derive(Args)]
struct WatchersArgs {
    /// Show only the images of this pool; repeatable
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
    /// Show which members run the gate, its keys, and the site's own scriptlet in it
    Show,
    /// Restore the site's own scriptlet and remove all of the gate's keys, the seals included
    ///
    /// Without --force and --reason this is refused while a member is fenced, or while it is unknown whether one is.
    Remove {
        /// Remove the gate although it was changed by hand, or although a member is fenced (this needs --reason too)
        #[arg(long)]
        force: bool,
        /// Why you do this: recorded in the ledger
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
    /// Make the Incus cluster trust this guardian, with a token from `incus config trust add rbd-guardian`
    ///
    /// Creates a key and a certificate if there are none, saves the cluster's certificate, and prints the lines for the
    /// configuration. The table [incus] of the configuration names the files. After a failure, run it again to continue.
    Enroll(EnrollArgs),
}

#[derive(Args)]
struct EnrollArgs {
    /// The token. Other users of this host can see it on a command line: without it, or with `-`, it is read from standard
    /// input
    token: Option<String>,
    /// Read the token from this file
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<std::path::PathBuf>,
    /// Create a new key and certificate, and replace the saved certificate of the cluster
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
    /// Show all records (the default)
    Show,
    /// Show what was done, by whom and why; the newest entry last
    Audit {
        /// Show only the newest N entries
        #[arg(long, value_name = "N")]
        last: Option<u64>,
    },
}

/// The command line, for manual pages and completions (`examples/manual`).
#[must_use]
pub fn command() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command()
}

/// Runs the verb the command line names.
#[must_use]
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == apart::WORD) {
        return ask_monitors();
    }
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

/// The command line of a process that a guardian starts to ask monitors.
#[derive(Parser)]
struct AskMonitors {
    #[command(flatten)]
    common: Common,
    mons: Vec<String>,
}

fn ask_monitors() -> ExitCode {
    let AskMonitors { common, mons } = AskMonitors::parse_from(std::env::args_os().skip(1));
    descriptors::raise();
    let Common { conf, cluster, id, keyring, timeout, .. } = common;
    let options = Options { conf, cluster, id, keyring, timeout, asks_with: None };
    let asked = output::keep().and_then(|()| apart::serve(&options, &mons, &mut output::answer()));
    leave(asked.map_or(Exit::Failed, |()| Exit::Done).into())
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
    tell!("rbd-guardian: {line}{usage}");
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
        Verb::Disarm(args) => disarm::disarm(&cli.common, args),
        Verb::Arm(args) => disarm::arm(&cli.common, args),
        Verb::Gate(args) => gate::run(&cli.common, args),
        Verb::Replay(args) => replay::run(&cli.common, args),
        Verb::Config(args) => config::run(&cli.common, args),
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

    fn request(&self, overrides: Overrides) -> PlanRequest {
        PlanRequest { overrides, ..PlanRequest::of(self.target()) }
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
        command().debug_assert();
    }
}
