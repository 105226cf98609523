//! The exclusive lock of an image, as the header's xattr `lock.rbd_lock` encodes it.
//!
//! Reading the xattr needs no class-execute capability (docs/facts/ceph.md#the-exclusive-lock). The encodings are `lock_info_t`
//! (`cls/lock/cls_lock_types.h`), `utime_t` and `entity_addr_t` (`msg/msg_types.h`), all little-endian; each struct is
//! wrapped in version, compatible version and length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rbd_guardian_core::model::addr::EntityAddr;
use serde::Serialize;

/// The xattr that holds it.
pub const XATTR: &str = "lock.rbd_lock";

/// Who holds the exclusive lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LockOwner {
    /// `client.4126`.
    pub owner: String,
    /// Its entity address; `None` where the lock has a blank one (seen from Ceph 16 to 18), or one of no IP.
    pub address: Option<EntityAddr>,
    /// `auto 94512392874`: the number is the cookie of the owner's watch.
    pub cookie: String,
}

/// Owners in an encoded lock: none when it was released, one for an exclusive lock, any number for a shared one. `None` if
/// the bytes are not what is documented above.
pub fn decode(bytes: &[u8]) -> Option<Vec<LockOwner>> {
    let mut lock = Reader(bytes).structure()?;
    let count = lock.u32()?;
    let mut owners = Vec::new();
    for _ in 0..count {
        let mut id = lock.structure()?;
        let (kind, number) = (id.u8()?, id.u64()?);
        let cookie = id.text()?;
        let mut info = lock.structure()?;
        info.take(8)?; // expiration
        let address = info.address()?;
        // CEPH_ENTITY_TYPE_CLIENT
        let kind = if kind == 8 { "client" } else { "other" };
        owners.push(LockOwner { owner: format!("{kind}.{number}"), address, cookie });
    }
    Some(owners)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A sequence of bytes behind its length.
    fn sized(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(usize::try_from(len).ok()?)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.sized()?.to_vec()).ok()
    }

    /// A structure's contents; what a newer version appended is not looked at.
    fn structure(&mut self) -> Option<Self> {
        let (_version, _compat) = (self.u8()?, self.u8()?);
        Some(Reader(self.sized()?))
    }

    /// `entity_addr_t`: marker 0 is the form before 2016, marker 1 the structure that carries a type. Within `Some`, `None`
    /// is an address that is blank, or of a family without IPs.
    fn address(&mut self) -> Option<Option<EntityAddr>> {
        match self.u8()? {
            0 => {
                self.take(3)?;
                let nonce = self.u32()?;
                let mut storage = self.take(128)?;
                // Network byte order here, unlike everything else.
                let family = u16::from_be_bytes(storage.split_off(..2)?.try_into().ok()?);
                socket(family, storage, nonce)
            }
            1 => {
                let mut addr = self.structure()?;
                let (_type, nonce) = (addr.u32()?, addr.u32()?);
                let mut socket_addr = Reader(addr.sized()?);
                if socket_addr.0.is_empty() {
                    return Some(None);
                }
                let family = u16::from_le_bytes(socket_addr.array()?);
                socket(family, socket_addr.0, nonce)
            }
            _ => None,
        }
    }
}

/// A `sockaddr` behind its family; port and address are in network byte order.
fn socket(family: u16, rest: &[u8], nonce: u32) -> Option<Option<EntityAddr>> {
    const INET: u16 = 2;
    const INET6: u16 = 10;
    let mut rest = Reader(rest);
    let port = u16::from_be_bytes(rest.array()?);
    let ip = match family {
        INET => IpAddr::V4(Ipv4Addr::from(rest.array::<4>()?)),
        INET6 => {
            rest.take(4)?; // flow label
            IpAddr::V6(Ipv6Addr::from(rest.array::<16>()?))
        }
        _ => return Some(None),
    };
    Some(Some(EntityAddr { ip, port, nonce }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The xattr as librbd 16.2.15 wrote it, next to what `rbd lock ls` showed.
    #[test]
    fn reads_what_a_real_owner_wrote() {
        let recorded = [
            (
                "01016d00000001000000010121000000081d10000000000000140000006175746f20313430313434333133313931353834\
                 01012f00000000000000000000000101011c00000001000000888cd94a10000000020000000a4d000c0000000000000000\
                 000000000108000000696e7465726e616c",
                "10.77.0.12:0/1255771272",
                "auto 140144313191584",
            ),
            (
                "01017900000001000000010121000000081d10000000000000140000006175746f20313339373136363935343432383936\
                 01013b000000000000000000000001010128000000010000002767b3c51c0000000a00000000000000fd77000000000000\
                 000000000000000c00000000000000000108000000696e7465726e616c",
                "[fd77::c]:0/3316868903",
                "auto 139716695442896",
            ),
        ];
        for (hex, address, cookie) in recorded {
            let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
            let owner = LockOwner {
                owner: "client.4125".to_owned(),
                address: Some(address.parse().unwrap()),
                cookie: cookie.to_owned(),
            };
            assert_eq!(decode(&bytes), Some(vec![owner]));
            assert_eq!(decode(&bytes[..bytes.len() / 2]), None, "cut short");
        }
    }

    /// The first of the above with its address taken out, in both forms that a blank one has: no socket address at all, and
    /// one of the family 0.
    #[test]
    fn an_owner_without_an_address_is_an_owner() {
        let lock = |address: &str| {
            let info = format!("0000000000000000{address}00000000");
            let owner = format!(
                "010121000000081d10000000000000140000006175746f2031343031343433313331393135383401 01{}{info}",
                size(&info)
            );
            let list = format!("01000000{}0108000000696e7465726e616c", owner.replace(' ', ""));
            data_encoding::HEXLOWER.decode(format!("0101{}{list}", size(&list)).as_bytes()).unwrap()
        };
        for address in [
            "0101010c000000000000000000000000000000",
            "010101140000000000000000000000080000000000000000000000",
        ] {
            let owners = decode(&lock(address)).expect(address);
            assert_eq!((owners.len(), owners[0].owner.as_str(), owners[0].address), (1, "client.4125", None));
            assert_eq!(owners[0].cookie, "auto 140144313191584");
        }
    }

    /// `rbd lock add --shared`: whoever counts the first owner alone takes the second one's image for unused.
    #[test]
    fn a_shared_lock_has_all_its_owners() {
        let owner = |number: &str, nonce: &str| {
            format!(
                "010121000000081{number}10000000000000140000006175746f20313430313434313333313931353834\
                 01012f00000000000000000000000101011c000000010000008{nonce}8cd94a10000000020000000a4d000c\
                 000000000000000000000000"
            )
        };
        let list = format!("02000000{}{}0308000000696e7465726e616c", owner("d", "8"), owner("e", "9"));
        let lock = data_encoding::HEXLOWER.decode(format!("0101{}{list}", size(&list)).as_bytes()).unwrap();
        let owners = decode(&lock).unwrap();
        let told: Vec<(&str, u32)> =
            owners.iter().map(|one| (one.owner.as_str(), one.address.unwrap().nonce)).collect();
        assert_eq!(told, [("client.4125", 1_255_771_272), ("client.4126", 1_255_771_273)]);
    }

    fn size(hex: &str) -> String {
        data_encoding::HEXLOWER.encode(&u32::try_from(hex.len() / 2).unwrap().to_le_bytes())
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
