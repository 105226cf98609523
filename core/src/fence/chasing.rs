//! Clients that appear after a fence was planned: which are fenced as well, and which are remembered.

use crate::fence::Fence;
use crate::model::addr::{ClientAddr, Entry};

/// Maximum number of client entries added for clients that appear on a member of which only known clients are fenced.
pub const CHASED: usize = 250;
/// Maximum number of clients remembered that appear under a host entry: every reconnect attempt creates a new client instance.
pub const REMEMBERED: usize = 1000;

impl Fence {
    /// Fences these clients as well, which no entry refuses; those it did not know before.
    pub fn chase(&mut self, clients: impl Iterator<Item = ClientAddr>) -> Vec<ClientAddr> {
        let mut new = Vec::new();
        let mut beyond = false;
        for client in clients {
            let entry = Entry::Client(client);
            if self.plan.entries.contains(&entry) || self.to_chase.contains(&entry) {
                continue;
            }
            if self.record.seen.len() >= CHASED {
                beyond = true;
                continue;
            }
            self.to_chase.insert(entry);
            self.record.change(|record| record.seen.insert(client));
            new.push(client);
        }
        self.crowd.note_look(!new.is_empty(), beyond);
        new
    }

    /// Remembers clients of a refused host, for the release.
    pub fn remember(&mut self, clients: impl Iterator<Item = ClientAddr>) {
        for client in clients {
            if self.record.entries.contains_key(&Entry::Client(client)) {
                continue;
            }
            if self.record.seen.len() < REMEMBERED {
                self.record.change(|record| record.seen.insert(client));
            } else if !self.record.seen.contains(&client) {
                self.crowd.note_forgotten();
            }
        }
    }
}
