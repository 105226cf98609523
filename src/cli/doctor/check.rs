//! One line of what `doctor` says.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum CheckVerdict {
    Ok,
    /// Cannot be seen from here: the detail says how to see it.
    Note,
    Warn,
    Fail,
}

#[derive(Serialize)]
pub(in crate::cli) struct Check {
    pub(in crate::cli) check: String,
    pub(in crate::cli) verdict: CheckVerdict,
    pub(in crate::cli) detail: String,
}

pub(in crate::cli) fn check(
    name: impl Into<String>,
    verdict: CheckVerdict,
    detail: impl Into<String>,
) -> Check {
    Check { check: name.into(), verdict, detail: detail.into() }
}
