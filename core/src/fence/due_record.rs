//! The record of a fence as the ledger should hold it.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::model::record::FenceRecord;

/// Read freely, changed by [`DueRecord::change`] alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct DueRecord(FenceRecord);

impl DueRecord {
    /// As it is now.
    pub(super) fn new(record: FenceRecord) -> Self {
        Self(record)
    }

    /// INV-8 rests on this: nothing else changes a record that the guardian keeps. What it changes differs from the ledger
    /// from then on, so the guardian writes it before a step that rests on it is taken (`Fence::next_step` compares with
    /// what the ledger holds), and before anybody is told (`Guardian::finish`).
    pub(super) fn change<T>(&mut self, change: impl FnOnce(&mut FenceRecord) -> T) -> T {
        change(&mut self.0)
    }
}

impl Deref for DueRecord {
    type Target = FenceRecord;

    fn deref(&self) -> &FenceRecord {
        &self.0
    }
}
