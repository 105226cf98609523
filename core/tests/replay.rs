//! Recordings of the real daemon on a real cluster (core/tests/replay): this version decides as it did.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)] // Tests.

use std::fs;
use std::path::Path;

use rbd_guardian_core::recording::replay::replay;

#[test]
fn every_recording_replays_exactly() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for file in
        files.filter(|file| file.extension().is_some_and(|ending| ending == "jsonl" || ending == "gz"))
    {
        let replayed = replay(fs::File::open(&file).unwrap()).unwrap_or_else(|difference| {
            panic!("{}: {difference} (see core/tests/replay/README.md)", file.display())
        });
        println!("{}: {} inputs, {} effects", file.display(), replayed.inputs, replayed.effects);
        assert!(replayed.effects > 10 && fs::metadata(&file).unwrap().len() < 200_000);
        count += 1;
    }
    assert!(count >= 3);
}

/// A guardian of one struct wrote it. It begins with a checkpoint in which all fields lie beside each other, in the middle of a
/// fence.
#[test]
fn checkpoints_of_before_the_guardian_had_parts_are_read() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/flat-checkpoints.jsonl.gz");
    let replayed = replay(fs::File::open(file).unwrap()).unwrap_or_else(|difference| panic!("{difference}"));
    assert!(replayed.effects > 300, "{replayed:?}");
}
