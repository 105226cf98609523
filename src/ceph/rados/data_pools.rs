//! Which pool the data of each image lies in: the key `data_pool_id` of its header (`cls_rbd.cc`), written when the image is
//! made and never after. So each header is asked for it once, and no sweep pays for it again.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use rbd_guardian_core::model::osdmap::PoolId;

/// What headers said; of an image that is deleted it stays, its ID is not used again.
#[derive(Debug, Default)]
pub(crate) struct DataPoolCache(Mutex<HashMap<u64, Option<PoolId>>>);

/// Stands for a header: by name 100,000 of them would take some ten MB.
pub(crate) fn key(pool: PoolId, namespace: &str, image_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (pool, namespace, image_id).hash(&mut hasher);
    hasher.finish()
}

impl DataPoolCache {
    /// What this header said, if it was asked.
    pub(crate) fn get(&self, header: u64) -> Option<Option<PoolId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&header).copied()
    }

    /// It said this.
    pub(crate) fn put(&self, header: u64, pool: Option<PoolId>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(header, pool);
    }
}

/// A pool's number as Ceph encodes it: eight bytes, little-endian. `Ok(None)`: no other pool.
///
/// # Errors
/// Another encoding.
pub(crate) fn decode(bytes: Option<&[u8]>) -> Result<Option<PoolId>, &'static str> {
    let Some(bytes) = bytes else { return Ok(None) };
    let number =
        <[u8; 8]>::try_from(bytes).map_err(|_| "the pool of its data, whose encoding is not understood")?;
    Ok(Some(PoolId::from_le_bytes(number)).filter(|pool| *pool >= 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_known_by_pool_namespace_and_id_and_says_one_pool_or_none() {
        let known = DataPoolCache::default();
        known.put(key(1, "", "10a"), Some(7));
        known.put(key(1, "x", "10a"), None);
        assert_eq!(known.get(key(1, "", "10a")), Some(Some(7)));
        assert_eq!(known.get(key(1, "x", "10a")), Some(None));
        assert_eq!(known.get(key(2, "", "10a")), None);
        assert_eq!(decode(Some(&[7, 0, 0, 0, 0, 0, 0, 0])), Ok(Some(7)));
        assert_eq!((decode(None), decode(Some(&[0xff; 8]))), (Ok(None), Ok(None)));
        assert!(decode(Some(&[7, 0, 0, 0])).is_err());
    }
}
