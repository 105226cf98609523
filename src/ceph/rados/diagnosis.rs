//! Why there is no connection, where librados answers with an errno that has many causes, or with none: what is wrong with
//! `ceph.conf`, the monitors' names or the keyring is read from these themselves.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rbd_guardian_core::model::addr::EntityAddr;

use crate::ceph::rados::error::ConnectError;

/// The files that librados looks for when none is named; the first that is there counts (`ceph_common.h`).
fn usual_places(cluster: &str) -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("CEPH_CONF") {
        return named.to_string_lossy().split([',', ';', ' ']).map(PathBuf::from).collect();
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(format!(".ceph/{cluster}.conf")));
    let etc = PathBuf::from(format!("/etc/ceph/{cluster}.conf"));
    [etc].into_iter().chain(home).chain([PathBuf::from(format!("{cluster}.conf"))]).collect()
}

/// Looks through the configuration before librados does: its parser ends the whole process at some bytes
/// (an assertion of Boost's, 16.2.15).
///
/// # Errors
/// [`ConnectError::ConfText`].
pub(super) fn conf_is_readable(path: Option<&Path>, cluster: &str) -> Result<(), ConnectError> {
    let places = path.map_or_else(|| usual_places(cluster), |path| vec![path.to_owned()]);
    // librados itself refuses a file that cannot be read.
    let Some((path, bytes)) = places.into_iter().find_map(|path| Some((path.clone(), fs::read(path).ok()?)))
    else {
        return Ok(());
    };
    match strange(&bytes) {
        Some((line, what)) => Err(ConnectError::ConfText { path: path.display().to_string(), line, what }),
        None => Ok(()),
    }
}

/// The first place with something that the parser does not take: its line, and what is there. Comments and quoted values
/// may hold any text.
fn strange(bytes: &[u8]) -> Option<(usize, String)> {
    let line_of = |at: usize| 1 + bytes.iter().take(at).filter(|byte| **byte == b'\n').count();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Some((line_of(error.valid_up_to()), "text that is not UTF-8".to_owned())),
    };
    for (number, line) in text.lines().enumerate() {
        let (mut quote, mut escaped, mut before) = (None, false, '\n');
        for character in line.chars() {
            match quote {
                _ if character == '\0' => return Some((number + 1, "a NUL byte".to_owned())),
                Some(open) if character == open && !escaped => quote = None,
                Some(_) => {}
                None if matches!(character, '#' | ';') && !escaped => break,
                // A value is quoted if it begins with a quote.
                None if matches!(character, '"' | '\'') && before == '=' => quote = Some(character),
                None if !character.is_ascii() => return Some((number + 1, name_of(character))),
                None => {}
            }
            escaped = character == '\\' && !escaped;
            if !character.is_ascii_whitespace() {
                before = character;
            }
        }
    }
    None
}

fn name_of(character: char) -> String {
    let code = u32::from(character);
    match character {
        '\u{feff}' => format!("a byte order mark (U+{code:04X})"),
        '\u{a0}' => format!("a non-breaking space (U+{code:04X})"),
        _ => format!("'{}' (U+{code:04X}) outside of quotes", character.escape_debug()),
    }
}

/// What librados said, with this errno, in the terms of what is wrong, if that can be told.
pub(super) fn cause(errno: Errno, client: &str, mons: &str, keyring: Option<&str>) -> Option<ConnectError> {
    if mons.trim().is_empty() {
        // librados has looked for monitors in DNS as well.
        return Some(ConnectError::NoMonitors);
    }
    if let Some(wrong) = names(mons) {
        return Some(wrong);
    }
    keyring.and_then(|paths| key(errno, client, paths))
}

/// Did librados read the key? What it cannot read it refuses before it asks any monitor; whether this library knows a
/// type of keys cannot be asked of it.
fn key_was_read(errno: Errno) -> bool {
    matches!(errno, Errno::ETIMEDOUT | Errno::EACCES | Errno::EPERM)
}

/// Names in `mon_host` that are none, or that nobody knows.
fn names(mons: &str) -> Option<ConnectError> {
    let mut unknown = Vec::new();
    for part in mons.split([',', ';', ' ', '\t', '[', ']']).filter(|part| !part.is_empty()) {
        let bare = ["v1:", "v2:", "any:"].iter().find_map(|prefix| part.strip_prefix(prefix)).unwrap_or(part);
        let bare = bare.split('/').next().unwrap_or_default();
        // What brackets of an IPv6 address leave when they are split at: `:6789`.
        let port = bare.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        let address = bare.parse::<EntityAddr>().is_ok() || bare.parse::<IpAddr>().is_ok();
        if address || port || bare.is_empty() || bare.parse::<SocketAddr>().is_ok() {
            continue;
        }
        let name = bare.rsplit_once(':').map_or(bare, |(name, _)| name);
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let numbers = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if !name.bytes().all(allowed) || numbers {
            return Some(ConnectError::BadConf { what: format!("mon_host = {mons}"), errno: Errno::EINVAL });
        }
        if (name, 0).to_socket_addrs().is_err() {
            unknown.push(name.to_owned());
        }
    }
    (!unknown.is_empty()).then(|| ConnectError::UnknownMonitors { names: unknown.join(", ") })
}

/// What is wrong with the client's key in the first of these files that is there.
fn key(errno: Errno, client: &str, paths: &str) -> Option<ConnectError> {
    let client = client.to_owned();
    let paths = paths.split([',', ';', ' ', '\t']).filter(|path| !path.is_empty());
    let mut found = None;
    for path in paths {
        match fs::read(path) {
            Ok(bytes) => {
                found = Some((path.to_owned(), bytes));
                break;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Some(ConnectError::KeyringUnreadable {
                    path: path.to_owned(),
                    why: error.to_string(),
                });
            }
        }
    }
    let (path, bytes) = found?;
    match key_of(&client, &String::from_utf8_lossy(&bytes)) {
        KeyringState::Fine => None,
        // The cause is another one.
        KeyringState::Newer(_) if key_was_read(errno) => None,
        KeyringState::Absent => Some(ConnectError::NoKey { client, path }),
        KeyringState::Newer(kind) => Some(ConnectError::NewerKey { client, path, kind }),
        KeyringState::Broken => Some(ConnectError::BrokenKey { client, path }),
    }
}

#[derive(Debug, PartialEq)]
enum KeyringState {
    /// Of the type that every release reads.
    Fine,
    Absent,
    /// Of a type that came later.
    Newer(String),
    Broken,
}

/// A key is base64 of its type (two bytes, little-endian), when it was made (eight), its length (two) and the secret
/// (`CryptoKey::encode`, `src/auth/Crypto.cc`).
fn key_of(client: &str, keyring: &str) -> KeyringState {
    const AES: u16 = 1;
    const AES256K: u16 = 2;
    let section = format!("[{client}]");
    let mut inside = false;
    let mut key = None;
    for line in keyring.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == section;
        } else if let Some((name, value)) = line.split_once('=')
            && inside
            && name.trim() == "key"
        {
            key = Some(value.trim().trim_matches('"').to_owned());
        }
    }
    let Some(key) = key else { return KeyringState::Absent };
    let Ok(bytes) = data_encoding::BASE64.decode(key.as_bytes()) else { return KeyringState::Broken };
    let (Some(kind), Some(length)) = (number(&bytes, 0), number(&bytes, 10)) else {
        return KeyringState::Broken;
    };
    match kind {
        _ if bytes.len() != 12 + usize::from(length) => KeyringState::Broken,
        AES => KeyringState::Fine,
        AES256K => KeyringState::Newer("aes256k".to_owned()),
        other => KeyringState::Newer(format!("number {other}")),
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Option<usize> {
        strange(text.as_bytes()).map(|(line, _)| line)
    }

    /// As librados 16.2.15 ended or read them.
    #[test]
    fn what_ends_the_parser_is_found_and_what_it_takes_is_left() {
        let plain = "[global]\nmon host = 10.0.0.1\n";
        assert_eq!(line(plain), None);
        assert_eq!(line(&plain.replace('\n', "\r\n")), None);
        for taken in
            ["# büro\n", "; büro\n", "log file = x # büro\n", "keyring = \"/tmp/büro\"\n", "a = '\u{a0}'\n"]
        {
            assert_eq!(line(&format!("{plain}{taken}")), None, "{taken}");
        }
        assert_eq!(line(&format!("\u{feff}{plain}")), Some(1));
        for ends in [
            "\u{a0}mon host = x\n",
            "mon\u{a0}host = x\n",
            "keyring =\u{a0}x\n",
            "keyring = x\u{a0}\n",
            "\u{a0}\n",
            "keyring = /tmp/büro\n",
            "büro = 1\n",
            "[client.büro]\n",
            "keyring = x\"büro\"\n",
            "keyring = \\# büro\n",
            "keyring = \"a\" büro\n",
        ] {
            assert_eq!(line(&format!("{plain}{ends}")), Some(3), "{ends}");
        }
        assert_eq!(strange(b"[global]\n# b\xfcro\n").map(|(line, _)| line), Some(2));
        assert!(
            strange("[g]\nx = \u{a0}1".as_bytes())
                .is_some_and(|(_, what)| what.contains("non-breaking space"))
        );
    }

    #[test]
    fn a_key_is_told_by_its_type() {
        let keyring = |key: &str| {
            format!("[client.other]\n\tkey = AQ==\n[client.guardian]\n\tkey = {key}\n\tcaps mon = \"x\"\n")
        };
        let key = |text: &str| key_of("client.guardian", &keyring(text));
        assert_eq!(key("AQAj4V1mAAAAABAAg5IaCOsKXKMXxSjCkCRWxA=="), KeyringState::Fine);
        let mut newer = vec![2, 0, 0x23, 0xe1, 0x5d, 0x66, 0, 0, 0, 0, 32, 0];
        newer.extend([7; 32]);
        let newer = data_encoding::BASE64.encode(&newer);
        let file = std::env::temp_dir().join(format!("rbd-guardian-newer-key.{}", std::process::id()));
        fs::write(&file, keyring(&newer)).unwrap();
        let cause = |errno| cause(errno, "client.guardian", "127.0.0.1", file.to_str());
        assert!(matches!(cause(Errno::EIO), Some(ConnectError::NewerKey { .. })), "an older librados");
        for of_monitors in [Errno::ETIMEDOUT, Errno::EACCES, Errno::EPERM] {
            assert_eq!(cause(of_monitors), None, "a librados that reads this type: the key is not the cause");
        }
        fs::remove_file(&file).unwrap();
        assert_eq!((newer.len(), newer.starts_with("Ag")), (60, true));
        assert_eq!(key(&newer), KeyringState::Newer("aes256k".to_owned()));
        for broken in ["hello", "", "AQAj4V1mAAAAABAAg5IaCOsKXKMXxSjCkCRW"] {
            assert_eq!(key(broken), KeyringState::Broken, "{broken}");
        }
        assert_eq!(key_of("client.third", &keyring("x")), KeyringState::Absent);
    }

    #[test]
    fn names_of_monitors_are_told_from_addresses() {
        for known in [
            "10.0.0.1",
            "10.0.0.1:6789,10.0.0.2",
            "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]",
            "localhost",
            "[fd77::1]:6789",
            "[v2:[fd77::1]:3300,v1:[fd77::1]:6789]",
        ] {
            assert_eq!(names(known), None, "{known}");
        }
        assert!(
            matches!(names("10.0.0.1 mon.nowhere.invalid:6789"), Some(ConnectError::UnknownMonitors { names }) if names == "mon.nowhere.invalid")
        );
        assert!(matches!(names("[v2:1.2.3:x"), Some(ConnectError::BadConf { .. })));
    }
}
