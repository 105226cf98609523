//! Blocking calls of librados, each on an OS thread of its own.
//!
//! The C API has no asynchronous monitor commands (docs/facts/ceph.md#librados). A call that hangs keeps its thread until
//! librados' own timeout ends it; nobody waits for that: the caller's deadline counts, and what the call did
//! is then unknown.

use std::sync::mpsc::{Receiver, channel};
use std::thread::Builder;

use crate::deadline::{Deadline, DeadlineError};

/// Threads need no more for a monitor command; the default of 2 MiB would count for hundreds of them.
const STACK_BYTES: usize = 256 * 1024;

/// Runs all calls at the same time, at most `width` at once, and yields `(index, answer)` as they finish.
pub fn each<T, F>(calls: Vec<F>, width: usize) -> Receiver<(usize, T)>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (answers, receiver) = channel();
    let width = width.clamp(1, calls.len().max(1));
    let mut lanes: Vec<Vec<(usize, F)>> = (0..width).map(|_| Vec::new()).collect();
    for (index, call) in calls.into_iter().enumerate() {
        lanes[index % width].push((index, call));
    }
    for lane in lanes {
        let answers = answers.clone();
        start(move || {
            for (index, call) in lane {
                if answers.send((index, call())).is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

/// Without a thread the calls are dropped and so never answered: unknown, as for any other silence.
pub(super) fn start(run: impl FnOnce() + Send + 'static) {
    let _ = Builder::new().name("lane".to_owned()).stack_size(STACK_BYTES).spawn(run);
}

/// Runs one call.
///
/// # Errors
/// It did not end in time.
pub fn one<T, F>(call: F, deadline: &Deadline) -> Result<T, DeadlineError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let answer = deadline.receive(&each(vec![call], 1))?;
    answer.map(|(_, answer)| answer).ok_or(DeadlineError::Over)
}

/// Runs one call for a task, which awaits it. `None` if it has no answer: it panicked, or there was no thread for it.
/// Dropped by its task, the call goes on all the same.
pub async fn awaited<T, F>(call: F) -> Option<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (to, answer) = tokio::sync::oneshot::channel();
    start(move || drop(to.send(call())));
    answer.await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Barrier};
    use std::time::Duration;

    #[test]
    fn calls_run_at_the_same_time() {
        let meet = Arc::new(Barrier::new(16));
        let calls = (0..16).map(|_| {
            let meet = Arc::clone(&meet);
            move || meet.wait().is_leader()
        });
        let leaders = each(calls.collect(), 16).iter().filter(|(_, leader)| *leader).count();
        assert_eq!(leaders, 1);
    }

    #[test]
    fn a_call_that_hangs_does_not_hold_its_caller() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let deadline = Deadline::after(Duration::from_millis(30), Arc::default());
        assert_eq!(one(move || hang.recv().is_ok(), &deadline), Err(DeadlineError::Over));
        drop(release);
    }

    #[tokio::test]
    async fn a_task_hears_of_an_answer_and_of_none() {
        assert_eq!(awaited(|| 7).await, Some(7));
        let broken = || {
            // As an index out of bounds would.
            std::panic::resume_unwind(Box::new("broken"));
        };
        assert_eq!(awaited(broken).await, None);
    }

    #[test]
    fn few_lanes_serve_many_calls() {
        let calls: Vec<_> = (0..10).map(|n| move || n * n).collect();
        let mut answers: Vec<_> = each(calls, 3).iter().collect();
        answers.sort_unstable();
        assert_eq!(answers, (0..10).map(|n| (n, n * n)).collect::<Vec<_>>());
    }
}
