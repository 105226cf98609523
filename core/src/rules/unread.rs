//! What a sweep could not read, and which images that concerns.
//!
//! A sweep says it in words: `image POOL/NAMESPACE/IMAGE: why`, `pool POOL: why`, `pool POOL/NAMESPACE: why`, or anything
//! else, which concerns every image.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::model::volume::ImageName;

/// One sweep's.
#[derive(Debug, Clone, Default)]
pub struct Unread<'a> {
    places: BTreeSet<&'a str>,
    everything: Option<&'a str>,
}

impl<'a> Unread<'a> {
    /// Of what a sweep said.
    pub fn new(said: &'a [String]) -> Self {
        let place = |text: &&str| ["image ", "pool "].iter().any(|kind| text.starts_with(kind));
        let named = |text: &&str| place(text) && text.contains(": ");
        let said = || said.iter().map(String::as_str);
        Self { places: said().filter(named).collect(), everything: said().find(|text| !named(text)) }
    }

    /// Why the users of an image are not known; `None` where it was read.
    pub fn of(&self, image: &ImageName) -> Option<&'a str> {
        let pool = || self.at(&format!("pool {}: ", image.pool));
        let namespace = || {
            let named = !image.namespace.is_empty();
            named.then(|| self.at(&format!("pool {}/{}: ", image.pool, image.namespace)))?
        };
        self.everything.or_else(pool).or_else(namespace).or_else(|| self.at(&format!("image {image}: ")))
    }

    fn at(&self, place: &str) -> Option<&'a str> {
        let found = self.places.range::<str, _>((Bound::Included(place), Bound::Unbounded)).next();
        found.filter(|text| text.starts_with(place)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_concerns_what_it_names_and_nothing_else() {
        let of = |said: &str, image: &str| {
            Unread::new(&[said.to_owned()]).of(&ImageName::parse(image).unwrap()).is_some()
        };
        assert!(of("image incus/a: no answer", "incus/a"));
        assert!(!of("image incus/a: no answer", "incus/ab") && !of("image incus/ab: no answer", "incus/a"));
        assert!(of("pool incus: no answer", "incus/a") && !of("pool other: no answer", "incus/a"));
        assert!(!of("pool incus/ns: no answer", "incus/a"), "the default namespace was read");
        let image = ImageName { pool: "p".into(), namespace: "ns".into(), name: "a".into() };
        let said = ["pool p/ns: no answer".to_owned(), "image p/b: no answer".to_owned()];
        assert!(Unread::new(&said).of(&image).is_some());
        assert!(of("osd dump: no answer", "incus/a"), "nobody knows what");
        assert!(of("pool", "incus/a"));
    }
}
