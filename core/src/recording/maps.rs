//! The osdmaps of a checkpoint. Hundreds of held fences keep the same one, which is large: it is written once.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::guardian::Guardian;
use crate::model::osdmap::OsdMap;

/// Every map that a guardian keeps, each once, and where it keeps which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maps {
    distinct: Vec<Arc<OsdMap>>,
    /// By place, in the guardian's own order.
    places: Vec<Option<usize>>,
}

impl Maps {
    /// Those of a guardian.
    pub fn of(guardian: &mut Guardian) -> Self {
        let mut maps = Self::default();
        for place in guardian.maps() {
            let index = place.as_ref().map(|map| maps.index(map));
            maps.places.push(index);
        }
        maps
    }

    /// Puts each back in its place.
    pub fn give_to(&self, guardian: &mut Guardian) {
        for (place, index) in guardian.maps().zip(&self.places) {
            *place = index.and_then(|index| self.distinct.get(index).cloned());
        }
    }

    fn index(&mut self, map: &Arc<OsdMap>) -> usize {
        self.distinct.iter().position(|known| known == map).unwrap_or_else(|| {
            self.distinct.push(Arc::clone(map));
            self.distinct.len() - 1
        })
    }
}
