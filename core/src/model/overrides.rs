//! What an operator permits for one fence: carried whole from the command line over the control socket or the ledger
//! to the plan.

use serde::{Deserialize, Serialize};

/// What an operator permits for one fence. A permission that is missing in a message or record was not given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permits {
    /// Go on with what is known, where the host itself may not be fenced or a source did not answer. Needs no reason.
    #[serde(default)]
    pub accept_incomplete: bool,
    /// Which rules to go over.
    #[serde(flatten)]
    pub over: Over,
}

/// Rules to go over, or that a fence went over. Each needs a reason, which is recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Over {
    /// The storm brake.
    #[serde(default, rename = "over_brake")]
    pub brake: bool,
    /// Where every form of an entry is in doubt, rely on it all the same: no guardian runs any more that could send the
    /// removal.
    #[serde(default, rename = "over_doubt")]
    pub doubt: bool,
    /// The member answers.
    #[serde(default, rename = "although_reachable")]
    pub reachable: bool,
    /// Nothing is known at the address.
    #[serde(default, rename = "unknown_address")]
    pub unknown: bool,
}

impl Over {
    /// Each rule in words, and the flag that goes over it.
    fn rules(self) -> [(bool, &'static str, &'static str); 4] {
        [
            (self.brake, "the storm brake", "--over-brake"),
            (self.doubt, "a removal in doubt", "--over-doubt"),
            (self.reachable, "an answer of the member", "--although-reachable"),
            (self.unknown, "an address at which nothing is known", "--unknown-address"),
        ]
    }

    /// Is there a rule to go over?
    pub fn any(self) -> bool {
        self.rules().iter().any(|(over, ..)| *over)
    }

    /// What is gone over, in words: `the storm brake and a removal in doubt`. Empty if nothing is.
    pub fn words(self) -> String {
        self.rules()
            .iter()
            .filter(|(over, ..)| *over)
            .map(|(_, words, _)| *words)
            .collect::<Vec<_>>()
            .join(" and ")
    }

    /// The flags on the command line.
    pub fn flags(self) -> Vec<String> {
        self.rules().iter().filter(|(over, ..)| *over).map(|(.., flag)| (*flag).to_owned()).collect()
    }

    /// What either permits.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            brake: self.brake || other.brake,
            doubt: self.doubt || other.doubt,
            reachable: self.reachable || other.reachable,
            unknown: self.unknown || other.unknown,
        }
    }
}

impl Permits {
    /// What either permits.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            accept_incomplete: self.accept_incomplete || other.accept_incomplete,
            over: self.over.and(other.over),
        }
    }
}

/// The operator's reason, if there is one: blanks say nothing.
pub fn reason(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permission_that_is_missing_is_not_given_and_each_is_carried_by_its_name() {
        assert_eq!(serde_json::from_str::<Permits>("{}").unwrap(), Permits::default());
        for name in ["over_brake", "over_doubt", "although_reachable", "unknown_address"] {
            let permits: Permits = serde_json::from_str(&format!("{{\"{name}\":true}}")).unwrap();
            assert!(permits.over.any() && !permits.accept_incomplete, "{name}");
            assert_eq!((permits.over.flags().len(), permits.over.words().is_empty()), (1, false));
            assert_eq!(serde_json::to_value(permits).unwrap()[name], true);
            assert_eq!(permits.and(Permits::default()), permits);
        }
    }

    #[test]
    fn a_blank_reason_is_none() {
        assert_eq!((reason(Some(" \t\n")), reason(None), reason(Some(" why "))), (None, None, Some("why")));
    }
}
