//! What the process uses, as every exporter tells it.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};

/// At this moment; what cannot be read is left out.
#[derive(Debug, Default)]
pub(crate) struct ProcessUse {
    pub(crate) cpu: Option<Duration>,
    pub(crate) resident: Option<u64>,
    pub(crate) files: Option<u64>,
    pub(crate) most_files: Option<u64>,
}

impl ProcessUse {
    pub(crate) fn now() -> Self {
        let cpu = getrusage(UsageWho::RUSAGE_SELF).ok().map(|used| {
            let micros = |time: nix::sys::time::TimeVal| {
                let micros = time.tv_sec().saturating_mul(1_000_000).saturating_add(time.tv_usec());
                Duration::from_micros(u64::try_from(micros).unwrap_or_default())
            };
            micros(used.user_time()) + micros(used.system_time())
        });
        let resident = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
        });
        let files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64);
        let most_files = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
        Self { cpu, resident, files, most_files }
    }
}
