//! Tasks that each end exactly once, with what they were for: also one that panics.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

/// Tasks under way; `J` says what each is for, `D` is how it ends.
#[derive(Debug)]
pub(super) struct Jobs<J, D> {
    tasks: JoinSet<D>,
    under_way: HashMap<Id, J>,
}

impl<J, D: 'static> Jobs<J, D> {
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), under_way: HashMap::new() }
    }

    /// Begins a task, within a local set.
    pub(super) fn begin(&mut self, job: J, task: impl Future<Output = D> + 'static) {
        let handle = self.tasks.spawn_local(task);
        self.under_way.insert(handle.id(), job);
    }

    /// The next task that ended, and how; or what it was for, if it has no end of its own, with the reason. `None`
    /// while none is under way. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Option<Result<D, (J, String)>> {
        loop {
            match self.tasks.join_next_with_id().await? {
                Ok((id, done)) => {
                    self.under_way.remove(&id);
                    return Some(Ok(done));
                }
                Err(error) => {
                    if let Some(job) = self.under_way.remove(&error.id()) {
                        return Some(Err((job, why(error))));
                    }
                }
            }
        }
    }
}

fn why(error: tokio::task::JoinError) -> String {
    let cause = error.try_into_panic().map(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => {
            panic.downcast::<&str>().map_or_else(|_| "it panicked".to_owned(), |text| (*text).to_owned())
        }
    });
    cause.unwrap_or_else(|cancelled| cancelled.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    #[tokio::test]
    async fn each_job_ends_once_also_when_it_panics() {
        let mut jobs = Jobs::new();
        let all = async {
            jobs.begin("well", async { 7 });
            jobs.begin("ill", async {
                std::panic::resume_unwind(Box::new("broken"));
            });
            let mut ends = vec![jobs.next().await.unwrap(), jobs.next().await.unwrap()];
            ends.sort_by_key(Result::is_err);
            assert_eq!(ends, [Ok(7), Err(("ill", "broken".to_owned()))]);
            assert_eq!(jobs.next().await, None);
            assert!(jobs.under_way.is_empty(), "nothing is kept of what ended");
        };
        LocalSet::new().run_until(all).await;
    }
}
