//! What an operator permits for one fence: one value, carried whole from the command line over the control socket or the
//! ledger to the plan and into the record.

use serde::{Deserialize, Serialize};

/// What an operator permits for one fence. A permission that is missing in a message or record was not given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// Go on with what is known, where the host itself may not be fenced or a source did not answer. Needs no reason.
    #[serde(default)]
    pub accept_incomplete: bool,
    /// Go over the storm brake. Needs a reason, as those below: it is recorded.
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

impl Overrides {
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
    pub fn any_rule(self) -> bool {
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

    /// The flags on the command line that need a reason.
    pub fn flags(self) -> Vec<String> {
        self.rules().iter().filter(|(over, ..)| *over).map(|(.., flag)| (*flag).to_owned()).collect()
    }

    /// What either permits.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            accept_incomplete: self.accept_incomplete || other.accept_incomplete,
            brake: self.brake || other.brake,
            doubt: self.doubt || other.doubt,
            reachable: self.reachable || other.reachable,
            unknown: self.unknown || other.unknown,
        }
    }
}

/// The form in a fence's record, where [`Overrides::accept_incomplete`] is `accepted`: records of before are read, and
/// guardians of before read these.
pub mod recorded {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Overrides, rules};

    #[derive(Serialize, Deserialize)]
    struct Recorded {
        #[serde(default)]
        accepted: bool,
        #[serde(flatten, with = "rules")]
        rules: Overrides,
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(overrides: &Overrides, serializer: S) -> Result<S::Ok, S::Error> {
        Recorded { accepted: overrides.accept_incomplete, rules: *overrides }.serialize(serializer)
    }

    /// Reads it.
    ///
    /// # Errors
    /// Those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Overrides, D::Error> {
        let Recorded { accepted, rules } = Recorded::deserialize(deserializer)?;
        Ok(Overrides { accept_incomplete: accepted, ..rules })
    }
}

/// The form in a plan: the rules alone.
pub mod rules {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Overrides;

    #[derive(Serialize)]
    struct Rules {
        over_brake: bool,
        over_doubt: bool,
        although_reachable: bool,
        unknown_address: bool,
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(overrides: &Overrides, serializer: S) -> Result<S::Ok, S::Error> {
        let Overrides { accept_incomplete: _, brake, doubt, reachable, unknown } = *overrides;
        let rules = Rules {
            over_brake: brake,
            over_doubt: doubt,
            although_reachable: reachable,
            unknown_address: unknown,
        };
        rules.serialize(serializer)
    }

    /// Reads it.
    ///
    /// # Errors
    /// Those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Overrides, D::Error> {
        Ok(Overrides { accept_incomplete: false, ..Overrides::deserialize(deserializer)? })
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
        assert_eq!(serde_json::from_str::<Overrides>("{}").unwrap(), Overrides::default());
        for name in ["over_brake", "over_doubt", "although_reachable", "unknown_address"] {
            let one: Overrides = serde_json::from_str(&format!("{{\"{name}\":true}}")).unwrap();
            assert!(one.any_rule() && !one.accept_incomplete, "{name}");
            assert_eq!((one.flags().len(), one.words().is_empty()), (1, false));
            assert_eq!(serde_json::to_value(one).unwrap()[name], true);
            assert_eq!(one.and(Overrides::default()), one);
        }
    }

    #[test]
    fn a_record_says_accepted_and_a_plan_says_the_rules_alone() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Both {
            #[serde(flatten, with = "recorded")]
            record: Overrides,
            #[serde(with = "rules")]
            plan: Overrides,
        }
        let overrides = Overrides { accept_incomplete: true, doubt: true, ..Overrides::default() };
        let json = serde_json::to_value(Both { record: overrides, plan: overrides }).unwrap();
        let rules = serde_json::json!({
            "over_brake": false, "over_doubt": true, "although_reachable": false, "unknown_address": false,
        });
        assert_eq!(json["plan"], rules);
        assert_eq!((&json["accepted"], &json["over_doubt"]), (&true.into(), &true.into()));
        assert_eq!(json.get("accept_incomplete"), None);
        let read: Both = serde_json::from_value(json).unwrap();
        assert_eq!(read.record, overrides);
        assert_eq!(read.plan, Overrides { doubt: true, ..Overrides::default() });
    }

    #[test]
    fn a_blank_reason_is_none() {
        assert_eq!((reason(Some(" \t\n")), reason(None), reason(Some(" why "))), (None, None, Some("why")));
    }
}
