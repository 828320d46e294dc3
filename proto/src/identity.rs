//! How a session proves that it holds the key of its Session resource.

/// Length of the traffic manager's nonce in bytes.
pub const NONCE_LENGTH: usize = 32;

/// Length of an Ed25519 public key in bytes (RFC 8032).
pub const PUBLIC_KEY_LENGTH: usize = 32;

/// What a session signs: a fixed context, the Session's UID, the nonce.
pub fn signed_message(session_uid: &str, nonce: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(64 + nonce.len());
    message.extend_from_slice(b"kvpn session v1\n");
    message.extend_from_slice(session_uid.as_bytes());
    message.push(b'\n');
    message.extend_from_slice(nonce);
    message
}

/// A public key as `spec.publicKey` has it: lower-case hexadecimal.
pub fn encode_public_key(key: &[u8]) -> String {
    key.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Reads `spec.publicKey`; `None` when it is not 32 octets of hexadecimal.
pub fn decode_public_key(text: &str) -> Option<[u8; PUBLIC_KEY_LENGTH]> {
    let digits = text.bytes().all(|letter| letter.is_ascii_hexdigit());
    if !digits || text.len() != 2 * PUBLIC_KEY_LENGTH {
        return None;
    }
    let mut key = [0; PUBLIC_KEY_LENGTH];
    for (octet, at) in key.iter_mut().zip((0..).step_by(2)) {
        *octet = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_survives_its_text() {
        let key: [u8; 32] = std::array::from_fn(|i| i as u8 * 7);
        assert_eq!(decode_public_key(&encode_public_key(&key)), Some(key));
    }

    #[test]
    fn malformed_public_keys_are_refused() {
        for text in [
            "",
            "00",
            &"zz".repeat(32),
            &"+f".repeat(32),
            &"é".repeat(32),
        ] {
            assert_eq!(decode_public_key(text), None, "{text}");
        }
    }

    #[test]
    fn signed_message_binds_uid_and_nonce() {
        assert_eq!(
            signed_message("u", &[1, 2]),
            b"kvpn session v1\nu\n\x01\x02"
        );
    }
}
