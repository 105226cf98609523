//! Deliberate errors of the protocol, to show that tests would find each (docs/tests.md#deliberate-errors).
//!
//! A test that draws worlds at random proves little unless it is known what it sees. Each error here is one that somebody
//! could make in a moment of simplification, and is switched on in tests alone: without the feature `mutants`, which no
//! program that is used has, `is` is `false` at compile time.

/// A part of the protocol that is left out, or done wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The map is not read again after the last PG answered (INV-1).
    MapNotReadAgain,
    /// A pool counts as proved once one of its PGs has answered (INV-1).
    OnePgProvesPool,
    /// PGs are asked whether they have an osdmap of before the entries (INV-1).
    EarlierEpochAsked,
    /// PGs are asked for the newest osdmap, so that late ones never have it.
    NewestEpochAsked,
    /// What PGs answered before entries were removed counts for those that were put back (INV-1).
    AnswersOfBefore,
    /// A pool that was split stays proved (INV-1).
    SplitPoolProved,
    /// Entries count as standing once the monitors have answered, whatever the map shows (INV-9).
    ReplyBelieved,
    /// An entry that ends too soon counts as one that stands (INV-3).
    EndNotRead,
    /// An entry that ends too soon is added again, which changes nothing (INV-3).
    AddedToExtend,
    /// An entry that was removed and put back between two maps counts as one that stood (INV-3).
    GapNotSeen,
    /// A fence whose entry is gone stays sealed (INV-3).
    BreachNotSeen,
    /// The gate opens at the commit, before PGs have answered (INV-2).
    OpenAtCommit,
    /// The gate stays open while a fence is breached (INV-2, INV-3).
    OpenWhileBreached,
    /// The gate opens for a fence that covers known clients alone (INV-2).
    OpenForKnownClients,
    /// The gate opens although somebody outside of the fence uses the member's images (INV-2).
    OutsideIgnored,
    /// A sweep of before the seal shows that nobody uses the member's images (INV-2).
    SweepOfBefore,
    /// What a sweep could not read has no users (INV-9).
    UnreadHasNoUsers,
    /// A volume of which Incus did not say who uses it is nobody's (INV-9).
    UnknownOwnerIsNobody,
    /// A pool that lacks the images that Incus lists counts as covered (INV-2).
    OtherClusterCovered,
    /// Before the first whole listing each pool counts as covered (INV-2).
    UnlistedCovered,
    /// A member without the scriptlet counts as one that has it (INV-2).
    UngatedIsGated,
    /// Entries are sent before the ledger has the intent (INV-8).
    ActBeforeRecord,
    /// The gate is written before the ledger has its epoch (INV-8).
    GateBeforeRecord,
    /// A write of the gate has no epoch of its own (INV-7).
    GateWithoutEpoch,
    /// A removal is sent before the ledger says that it may arrive at any time (INV-7).
    RemovalNotRecorded,
    /// A removal that was not answered was not done (INV-9).
    NoAnswerIsNo,
    /// An entry whose removal may arrive yet is relied on (INV-7).
    DoubtIgnored,
    /// A guardian that does not lead any more goes on (INV-7).
    DeposedGoesOn,
    /// After a restart what was sealed is sealed, whatever the map shows (INV-9).
    ResumedUnseen,
    /// Nobody asks the member itself before its first entry is sent (INV-6).
    MemberNotAsked,
    /// A member that answers is fenced by itself all the same (INV-6).
    AnswerIgnored,
    /// Any number of members is fenced at once (INV-6).
    NoBrake,
    /// Whoever uses an image of the lost member now is fenced with it (INV-6).
    UsersAreTargets,
    /// One sweep is enough to learn an address by its client (INV-6).
    LearntAtOnce,
    /// A sweep is judged by a reading of Incus of before it ended (INV-6).
    EarlierListing,
    /// An address on an interface of a live member is fenced with the lost one (INV-6).
    LiveInterfaceIgnored,
    /// What came to an address since the member told its interfaces is fenced with it (INV-6).
    NewcomersIgnored,
    /// Live members' interfaces of before the fence are good enough (INV-6).
    InterfacesNotAsked,
    /// A plan that waited for the ledger or the storage is carried out unseen (INV-6).
    OldPlanCarriedOut,
    /// Two members lost at once, a majority, are believed to be lost (INV-6).
    DoubtfulViewBelieved,
    /// Any answer of a fenced member is a proof of its reboot (INV-5).
    AnyAnswerIsReboot,
    /// An uptime counts from the seal alone: that of a paused machine is accepted (INV-5).
    PausedIsReboot,
    /// Another machine under the same name is let back (INV-5).
    OtherMachineAccepted,
    /// A release begins while the gate is open (INV-5).
    ReleaseWithGateOpen,
    /// A release does not wait for operations that began while the gate was open (INV-2).
    HealNotDrained,
    /// A release leaves old clients without entries of their own (INV-4).
    ClientsNotKept,
    /// A release does not ask which clients there are (INV-4).
    ClientsNotRead,
    /// A release removes what another fence rests on (INV-3).
    OthersEntryRemoved,
    /// A removed entry waits for the gate to be closed before it is put back (INV-3).
    EntryWaitsForGate,
    /// Who has no Incus takes every gate for closed (INV-2).
    NoIncusNoGate,
    /// A pool that is guarded since the seal needs no proof (INV-1).
    NewPoolUnproved,
    /// What an image's header says of the pool of its data is not read (INV-1).
    HeaderNotRead,
    /// A client that appeared under a sealed member's other addresses is left alone (INV-1).
    NewClientsIgnored,
}

impl Mutant {
    pub const ALL: &'static [Self] = &[
        Self::MapNotReadAgain,
        Self::OnePgProvesPool,
        Self::EarlierEpochAsked,
        Self::NewestEpochAsked,
        Self::AnswersOfBefore,
        Self::SplitPoolProved,
        Self::ReplyBelieved,
        Self::EndNotRead,
        Self::AddedToExtend,
        Self::GapNotSeen,
        Self::BreachNotSeen,
        Self::OpenAtCommit,
        Self::OpenWhileBreached,
        Self::OpenForKnownClients,
        Self::OutsideIgnored,
        Self::SweepOfBefore,
        Self::UnreadHasNoUsers,
        Self::UnknownOwnerIsNobody,
        Self::OtherClusterCovered,
        Self::UnlistedCovered,
        Self::UngatedIsGated,
        Self::ActBeforeRecord,
        Self::GateBeforeRecord,
        Self::GateWithoutEpoch,
        Self::RemovalNotRecorded,
        Self::NoAnswerIsNo,
        Self::DoubtIgnored,
        Self::DeposedGoesOn,
        Self::ResumedUnseen,
        Self::MemberNotAsked,
        Self::AnswerIgnored,
        Self::NoBrake,
        Self::UsersAreTargets,
        Self::LearntAtOnce,
        Self::EarlierListing,
        Self::LiveInterfaceIgnored,
        Self::NewcomersIgnored,
        Self::InterfacesNotAsked,
        Self::OldPlanCarriedOut,
        Self::DoubtfulViewBelieved,
        Self::AnyAnswerIsReboot,
        Self::PausedIsReboot,
        Self::OtherMachineAccepted,
        Self::ReleaseWithGateOpen,
        Self::HealNotDrained,
        Self::ClientsNotKept,
        Self::ClientsNotRead,
        Self::OthersEntryRemoved,
        Self::EntryWaitsForGate,
        Self::NoIncusNoGate,
        Self::NewPoolUnproved,
        Self::HeaderNotRead,
        Self::NewClientsIgnored,
    ];
}

#[cfg(feature = "mutants")]
mod switched {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ON: Cell<Option<Mutant>> = Cell::new(named());
    }

    /// `GUARDIAN_MUTANT=OpenAtCommit`, for a program or a whole test suite.
    fn named() -> Option<Mutant> {
        let name = std::env::var("GUARDIAN_MUTANT").ok()?;
        let found = Mutant::ALL.iter().copied().find(|mutant| format!("{mutant:?}") == name);
        Some(found.unwrap_or_else(|| panic!("GUARDIAN_MUTANT={name}: there is no such mutant")))
    }

    /// Is this error made here, on this thread?
    pub fn is(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }

    /// From now on this error is made on this thread, or none.
    pub fn switch(mutant: Option<Mutant>) {
        ON.set(mutant);
    }
}

#[cfg(feature = "mutants")]
pub use switched::{is, switch};

/// Is this error made here? Never, but in tests.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}
