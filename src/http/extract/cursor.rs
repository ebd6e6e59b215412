//! Cursors of lists: opaque to callers, bound to the list that they were given out for, and checked for changes.
//!
//! The checksum keeps honest callers from mixing lists up and finds damaged cursors. It is no secret: a forged one
//! shows nothing that another request wouldn't.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;

const CHECKSUM_BYTES: usize = 12;

fn checksum(id: Uuid, list: &str) -> Vec<u8> {
    let mut digest = Sha256::new();
    digest.update(b"slowlane list cursor 1");
    digest.update(id.as_bytes());
    digest.update(list.as_bytes());
    digest.finalize().iter().take(CHECKSUM_BYTES).copied().collect()
}

/// The cursor behind the job `last` of the list that `list` describes.
pub fn encode(last: Uuid, list: &str) -> String {
    let mut bytes = last.as_bytes().to_vec();
    bytes.extend(checksum(last, list));
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The job that a cursor stands behind. `None` when it was changed or belongs to another list.
pub fn decode(cursor: &str, list: &str) -> Option<Uuid> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (id, given) = bytes.split_at_checked(16)?;
    let id = Uuid::from_slice(id).ok()?;
    (given == checksum(id, list)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_belongs_to_its_list() {
        let id = Uuid::now_v7();
        let cursor = encode(id, "state=queued");
        assert_eq!(decode(&cursor, "state=queued"), Some(id));
        assert_eq!(decode(&cursor, "state=failed"), None);
        assert_eq!(decode(&cursor.replace(|c: char| c == cursor.chars().next().unwrap(), "-"), "state=queued"), None);
        assert_eq!(decode("", "state=queued"), None);
    }
}
