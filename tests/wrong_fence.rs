//! docs/wrong-fence.md, command by command, by an operator who fenced a healthy host.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use common::guarded::SOON;
use common::guardian::Guardian;
use common::{LIMIT, Site};
use lab::{Pool, WriteLog as _, wait_for};
use nix::errno::Errno;

/// The commands of the page's blocks, in their order, as words.
fn commands() -> Vec<Vec<String>> {
    let page = include_str!("../docs/wrong-fence.md");
    let mut inside = false;
    let mut commands = Vec::new();
    for line in page.lines().map(str::trim) {
        if line == "```" {
            inside = !inside;
        } else if inside {
            let line = line.strip_prefix("rbd-guardian ").expect(line);
            // Every second part stands between quotes.
            let parts = line.split('"').enumerate();
            let words = parts.flat_map(|(n, part)| match n % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
                _ => vec![part.to_owned()],
            });
            commands.push(words.collect());
        }
    }
    commands
}

#[test]
fn every_command_of_the_page_does_what_it_says() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    site.lab.image("images", "disk", 16).unwrap();
    let guard = Guardian::new(&site, "one", "guard");
    let member = |name| format!("[[member]]\nname = \"{name}\"\naddresses = [\"{}\"]\n", site.ip(name));
    guard.configure("", &["n1", "n2"].map(member).concat());
    guard.start();
    guard.wait_until_leading(LIMIT);
    let writer = site.lab.host("n1").writer("images", "disk", 1).unwrap();
    writer.wait_for_acks(5, SOON).unwrap();
    guard.verb(&["fence", "n1", "--reason", "the wrong one"]).expect(0);
    let host = format!("{}:0/0", site.ip("n1"));

    // What the page warns of.
    site.lab.ceph(&["osd", "blocklist", "rm", &host]).unwrap();
    wait_for("the entry to be put back", LIMIT, || Ok(site.blocklist().contains_key(&host).then_some(())))
        .unwrap();
    wait_for("who did it", LIMIT, || Ok(guard.log_text().contains("client.admin at ").then_some(())))
        .unwrap();
    guard.wait_for_status("sealed again", LIMIT, |status| status["fences"][0]["state"] == "sealed");

    let commands = commands();
    let verbs: Vec<&str> = commands.iter().map(|words| words[0].as_str()).collect();
    assert_eq!(verbs, ["status", "ledger", "release", "release", "status", "ledger"], "{commands:?}");
    let mut released = false;
    // A release without proof comes after the other on the page, and is tried before it.
    for place in [0, 1, 3, 2, 4, 5] {
        let words: Vec<&str> = commands[place].iter().map(String::as_str).collect();
        let answer = guard.verb(&words);
        println!("{words:?}: {}", answer.exit);
        match (words[0], words.len()) {
            ("release", 2) => {
                let refused = answer.expect(4);
                assert_eq!(refused.json["refusals"][0]["code"], "not-proved", "{refused:#?}");
                assert!(site.blocklist().contains_key(&host), "nothing was changed");
            }
            ("release", _) => {
                assert_eq!(answer.expect(0).json["state"], "released");
                released = true;
            }
            ("status", _) => {
                let status = answer.expect(0).json;
                let state = if released { "watching" } else { "sealed" };
                assert_eq!(status["members"][0]["state"], state, "{status:#}");
            }
            _ => {
                let shown = answer.expect(0).json.to_string();
                assert!(!released || shown.contains("fenced by mistake, rebooted"), "{shown}");
            }
        }
    }
    // As the page says: the host may go on, what it ran before never.
    assert!(!site.blocklist().contains_key(&host));
    assert_eq!(writer.wait_for_error(lab::monotonic(), SOON).unwrap(), Errno::ESHUTDOWN);
    let mut newcomer = site.lab.host("n1").idle_client("images").unwrap();
    assert_eq!(newcomer.try_write("newcomer").unwrap(), Ok(()));
}
