//! What the demo tells its reader before and after.

use std::process::{Command, ExitCode};

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};

use crate::ending::Ending;
use crate::with::With;
use crate::without::Without;

/// Lines of evidence quoted from one source.
const QUOTED: usize = 3;
/// What a terminal has at least, nowadays.
const WIDTH: u16 = 118;

pub(crate) fn introduce() -> Result<()> {
    let version = |program: &str, word: &str| -> Result<String> {
        let output = Command::new(program).arg(word).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    println!(
        "{}; Incus {}",
        version("ceph-osd", "--version")?,
        version("/usr/libexec/incus/incusd", "--version")?
    );
    println!(
        "A cluster of three Incus members; its container c1 has its root disk on RBD, in Ceph. The member that runs c1 loses all\n\
         cables: Incus takes it for dead and starts c1 on another member. It is not dead, and its cables are plugged in again.\n\
         Members are namespaces of this machine; Incus, Ceph, the container and its file system are real.\n"
    );
    Ok(())
}

/// Prints what was found side by side, and judges it.
pub(crate) fn compare(without: Option<&Without>, with: &With) -> ExitCode {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    let header = ["", "without rbd-guardian", "with rbd-guardian"];
    table.set_header(header.into_iter().filter(|word| without.is_some() || !word.starts_with("without")));
    let mut row = |what: &str, alone: Option<String>, guarded: String| {
        table.add_row([Some(what.to_owned()), alone, Some(guarded)].into_iter().flatten());
    };
    let of = |tell: fn(&Without) -> String| without.map(tell);
    row("when Incus heals", of(|_| "c1 is started elsewhere at once".to_owned()), sealed(with));
    row(
        "when the old member is back",
        of(|half| format!("disk open on {}\n{} stale blocks written", list(&half.users), half.taken)),
        format!(
            "disk open on {} only\n{} stale blocks written\n{}",
            list(&with.users),
            with.taken,
            errors(with)
        ),
    );
    row("e2fsck -fn of the disk", of(|half| checked(&half.ending)), checked(&with.ending));
    row("what c1 was told is safe", of(|half| kept(&half.ending)), kept(&with.ending));
    let home = format!(
        "rebooted; released {:.0} s later, by proof;\nc1 is at home again",
        with.release.as_secs_f64()
    );
    row("the old member", of(|_| "had to be switched off".to_owned()), home);
    println!("\n{table}\n");
    let damaged = without.is_none_or(|half| !half.ending.is_intact());
    if let Some(half) = without {
        let (lost, owner) = (half.lost, half.owner);
        if damaged {
            println!(
                "without: {lost} and {owner} wrote to one disk at the same time, and its file system is damaged."
            );
        } else {
            println!("without: no damage, which is luck; run it again.");
        }
    }
    let protected = with.is_protected();
    if protected {
        let (lost, owner) = (with.lost, with.owner);
        println!(
            "with:    the storage refused {lost} before {owner} could open the disk: nothing lost, nothing damaged."
        );
    } else {
        println!("with:    NOT as it should be.");
    }
    if damaged && protected { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn sealed(with: &With) -> String {
    let seal = &with.seal;
    let margin = seal.margin.map_or_else(
        || format!("NOT before {} opened the disk", with.owner),
        |margin| format!("{:.1} s before {} opened the disk", margin.as_secs_f64(), with.owner),
    );
    let first = if seal.refused > 0 { "the gate refuses" } else { "it was sealed already" };
    let pools = if seal.pools == 1 { "pool" } else { "pools" };
    format!(
        "{first}; {} is sealed in {:.1} s,\n{margin}:\n{} PGs of {} {pools} prove that they refuse\n{}",
        with.lost,
        seal.took.as_secs_f64(),
        seal.pgs,
        seal.pools,
        seal.entries.join("\n")
    )
}

fn errors(with: &With) -> String {
    let kinds: Vec<_> = with.errors.iter().map(|(error, count)| format!("{error} × {count}")).collect();
    if kinds.is_empty() { "no error".to_owned() } else { kinds.join(", ") }
}

fn checked(ending: &Ending) -> String {
    if ending.status == 0 {
        return "status 0: clean".to_owned();
    }
    let quoted: String =
        ending.kinds.iter().take(QUOTED).map(|line| format!("\n  {}", short(line))).collect();
    format!("status {}: DAMAGED, {} repairs{quoted}", ending.status, ending.complaints)
}

/// As much of a line as a column takes.
fn short(line: &str) -> String {
    const WIDTH: usize = 36;
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

fn kept(ending: &Ending) -> String {
    let Ending { safe, lost, foreign, .. } = ending;
    if *lost + *foreign == 0 {
        return format!("{safe} blocks: all intact");
    }
    format!("{safe} blocks: {lost} LOST,\nfiles with something else in them: {foreign}")
}

fn list<'a>(names: impl IntoIterator<Item = &'a &'static str>) -> String {
    names.into_iter().copied().collect::<Vec<_>>().join(" and ")
}
