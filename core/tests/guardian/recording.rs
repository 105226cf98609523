//! What the flight recorder keeps, and what a replay of it shows.

use std::io::Read as _;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use rbd_guardian_core::model::record::FenceState;
use rbd_guardian_core::recording::replay::{Difference, replay};

use crate::model::Model;

const SECOND: Duration = Duration::from_secs(1);

/// A fence, and its release so long after a boot.
fn story(model: &mut Model, uptime: Duration) {
    model.run(10 * SECOND);
    model.lose_until_open("n2");
    model.run(60 * SECOND);
    model.bring_back("n2", uptime);
    model.until("released", |model| {
        model.ledger.fences.values().all(|fence| fence.state == FenceState::Released)
    });
    model.run(10 * SECOND);
}

fn lines(model: &mut Model) -> Vec<String> {
    let mut text = String::new();
    MultiGzDecoder::new(&*model.guardian.recording()).read_to_string(&mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn replays(lines: &[String]) -> Result<(), Difference> {
    replay(lines.join("\n").as_bytes()).map(drop)
}

#[test]
fn every_effect_of_a_fence_and_its_release_is_had_again() {
    let mut model = Model::new();
    story(&mut model, 20 * SECOND);
    let replayed = replay(&*model.guardian.recording()).unwrap();
    println!("{replayed:#?}");
    assert_eq!(replayed.effects, model.effects.len());
    assert!(replayed.effects > 100 && replayed.inputs > 300);
}

#[test]
fn another_decision_is_told_with_its_line_and_both_values() {
    let mut model = Model::new();
    story(&mut model, 20 * SECOND);
    let good = lines(&mut model);
    let add = good.iter().position(|line| line.contains(r#""effect":{"fence""#) && line.contains(r#""add""#));
    let add = add.unwrap();

    let mut other = good.clone();
    other[add] = good[add].replace("10.0.0.2:0/0", "10.0.0.3:0/0");
    let Err(Difference::Effect { line, recorded, replayed, .. }) = replays(&other) else { panic!() };
    assert_eq!(line, add + 1);
    assert!(recorded.contains("10.0.0.3:0/0") && replayed.contains("10.0.0.2:0/0"), "{recorded} {replayed}");

    let mut fewer = good.clone();
    fewer.remove(add);
    let Err(Difference::Effect { line, recorded, replayed, .. }) = replays(&fewer) else { panic!() };
    assert_eq!((line, recorded.as_str()), (add + 1, "nothing"));
    assert!(replayed.contains(r#""add""#), "{replayed}");

    let mut more = good.clone();
    more.insert(add, good[add].clone());
    assert!(matches!(replays(&more), Err(Difference::Effect { line, .. }) if line == add + 2));
}

#[test]
fn a_damaged_line_is_told_with_its_number() {
    let mut model = Model::new();
    story(&mut model, 20 * SECOND);
    let good = lines(&mut model);
    for (text, why) in [
        ("", "EOF"),
        ("{}", "nothing that is known"),
        (r#"{"at":7}"#, "invalid type"),
        (r#"{"effect":{"explode":1}}"#, "unknown variant `explode`"),
        (&good[20][..good[20].len() - 2], "EOF"),
    ] {
        let mut damaged = good.clone();
        damaged[20] = text.to_owned();
        let Err(Difference::Damaged { line: 21, why: told }) = replays(&damaged) else { panic!("{text}") };
        assert!(told.contains(why), "{text}: {told}");
    }
    assert_eq!(replays(&good[1..]), Err(Difference::NoBeginning { line: 1 }));
    assert_eq!(replays(&[]), Err(Difference::Empty));
    // A file that was cut off.
    let bytes = model.guardian.recording();
    let cut = replay(&bytes[..bytes.len() / 2]);
    assert!(matches!(cut, Err(Difference::Damaged { line, .. }) if line > 10), "{cut:?}");
}

#[test]
fn what_is_bounded_begins_at_a_checkpoint_and_replays_from_there() {
    let limit = 32 << 10;
    let mut model = Model::recording(limit);
    let mut longest = 0;
    for uptime in [40, 30, 20, 10] {
        story(&mut model, uptime * SECOND);
        longest = longest.max(model.guardian.recording().len());
    }
    let kept = lines(&mut model);
    println!("{longest} bytes at most of {limit}, {} lines kept", kept.len());
    assert!(kept[0].starts_with(r#"{"checkpoint""#), "{}", &kept[0][..80]);
    assert!(longest < limit * 3 / 2, "{longest}");
    let replayed = replay(&*model.guardian.recording()).unwrap();
    println!("{replayed:#?}");
    assert!(replayed.checkpoints > 0, "all that the guardian knows was compared");

    // A checkpoint that says something else is told.
    let second = kept.iter().skip(1).position(|line| line.starts_with(r#"{"checkpoint""#)).unwrap() + 1;
    let mut other = kept.clone();
    other[second] = kept[second].replace(r#""deposed":null"#, r#""deposed":"no""#);
    let Err(Difference::State { line, field, .. }) = replays(&other) else { panic!() };
    assert_eq!((line, field.as_str()), (second + 1, "deposed"));
}

#[test]
fn a_reading_that_brings_nothing_new_takes_no_room() {
    let mut model = Model::with_volumes(10_000);
    model.run(10 * SECOND);
    let first = model.guardian.recording().len();
    // A whole reading each minute, a sweep each half.
    model.run(600 * SECOND);
    let grown = model.guardian.recording().len() - first;
    println!("10,000 volumes: {first} bytes, and {grown} for ten minutes at rest");
    assert!(first < 1 << 20 && grown < 200 << 10, "{first} {grown}");
}

/// Every test of the guardian is one of its recorder as well.
impl Drop for Model {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.replays();
        }
    }
}
