//! A test that runs in a host of the lab: the test program starts itself there, for one of its tests.
//!
//! What runs inside can ask for the lab's daemons to be stopped and continued: a line on its stdout, an answer on its
//! stdin.
#![allow(clippy::print_stdout)] // It is a part of tests.

use std::env;
use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _, stdin, stdout};
use std::process::Stdio;
use std::time::Duration;

use lab::Lab;
use serde_json::Value;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Says to a test that it is inside, and what it has to know.
const FACTS: &str = "INSIDE_THE_LAB";
const REQUEST: &str = "inside: ";
const DONE: &str = "done";

/// Runs the test `name` of this program in the lab's host `admin`, by way of `wrapper` (a program and its arguments; may
/// be empty), and gives it `facts`.
///
/// # Errors
/// If it fails, with all it printed (it is printed here as well); or if the lab cannot do what it asks for.
pub(crate) fn run(lab: &Lab, wrapper: &[&str], name: &str, facts: &Value) -> Result<()> {
    let program = env::current_exe()?.display().to_string();
    let words = wrapper.iter().copied().chain([program.as_str(), "--exact", name, "--nocapture"]);
    let words = words.collect::<Vec<_>>();
    let mut child = lab
        .host("admin")
        .bounded(words[0], Duration::from_secs(180))
        .args(&words[1..])
        .env(FACTS, facts.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut answers = child.stdin.take().ok_or("no stdin")?;
    let mut seen = String::new();
    for line in BufReader::new(child.stdout.take().ok_or("no stdout")?).lines() {
        let line = line?;
        if let Some(request) = line.strip_prefix(REQUEST) {
            grant(lab, request)?;
            writeln!(answers, "{DONE}")?;
        }
        println!("{line}");
        seen += &line;
        seen.push('\n');
    }
    let status = child.wait()?;
    if status.success() && seen.contains("1 passed") {
        Ok(())
    } else {
        Err(format!("{status}\n{seen}").into())
    }
}

fn grant(lab: &Lab, request: &str) -> Result<()> {
    let (act, daemons) = request.split_once(' ').ok_or("a request without daemons")?;
    for daemon in daemons.split(' ') {
        match act {
            "stop" => lab.daemon(daemon).stop()?,
            "cont" => lab.daemon(daemon).cont()?,
            other => return Err(format!("cannot {other}").into()),
        }
    }
    Ok(())
}

/// What [`run`] was given; nothing if this test does not run inside.
///
/// # Errors
/// If it is not JSON.
pub(crate) fn facts() -> Result<Option<Value>> {
    Ok(env::var(FACTS).ok().map(|facts| serde_json::from_str(&facts)).transpose()?)
}

/// Has the lab do something (`stop osd.0 osd.1`, `cont mon.a`) and returns when it is done.
///
/// # Errors
/// If the lab cannot, or is gone.
pub(crate) fn ask(request: &str) -> Result<()> {
    // On a line of its own, whatever the test harness has written before.
    writeln!(stdout(), "\n{REQUEST}{request}")?;
    stdout().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if answer.trim_end() == DONE { Ok(()) } else { Err("the lab is gone".into()) }
}
