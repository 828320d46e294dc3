//! The environment of a process: its variables, as it was given them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use crate::v1;

/// Variables and their values, which need not be text. No log shows the values.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    pub variables: BTreeMap<Vec<u8>, Vec<u8>>,
    /// How many parts of the block are no variables, as when the process has written over it.
    pub damaged: usize,
}

/// Reads what the kernel has. Of several of one name the first counts, as for getenv(3).
impl From<v1::Environment> for Environment {
    fn from(message: v1::Environment) -> Self {
        let mut environment = Self::default();
        for part in message.block.split(|octet| *octet == 0) {
            let equals = part.iter().position(|octet| *octet == b'=');
            match equals {
                Some(at) if at > 0 => {
                    let (name, value) = (part[..at].to_vec(), part[at + 1..].to_vec());
                    if let Entry::Vacant(vacant) = environment.variables.entry(name) {
                        vacant.insert(value);
                    }
                }
                Some(_) | None if part.is_empty() => {}
                Some(_) | None => environment.damaged += 1,
            }
        }
        environment
    }
}

/// Without the values, as errors and logs may show it.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({} variables)", self.variables.len())
    }
}

impl fmt::Debug for v1::Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({} octets)", self.block.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(block: &'static [u8]) -> Environment {
        v1::Environment {
            block: block.into(),
        }
        .into()
    }

    fn value<'a>(environment: &'a Environment, name: &str) -> Option<&'a [u8]> {
        let value = environment.variables.get(name.as_bytes());
        value.map(Vec::as_slice)
    }

    #[test]
    fn variables_are_read_whatever_is_in_their_values() {
        let environment = read(b"A=1\0EMPTY=\0URL=a=b&c=\0LINES=x\ny\0RAW=\xff\0A=2\0");
        assert_eq!(value(&environment, "A"), Some(&b"1"[..]));
        assert_eq!(value(&environment, "EMPTY"), Some(&b""[..]));
        assert_eq!(value(&environment, "URL"), Some(&b"a=b&c="[..]));
        assert_eq!(value(&environment, "LINES"), Some(&b"x\ny"[..]));
        assert_eq!(value(&environment, "RAW"), Some(&b"\xff"[..]));
        assert_eq!((environment.variables.len(), environment.damaged), (5, 0));
    }

    #[test]
    fn what_a_process_has_written_over_is_noticed() {
        let environment = read(b"nginx: master\0\0\0=x\0B=2");
        assert_eq!(value(&environment, "B"), Some(&b"2"[..]));
        assert_eq!(environment.damaged, 2);
        assert_eq!(read(b""), Environment::default());
    }

    #[test]
    fn nothing_shows_a_value() {
        let message = v1::Environment {
            block: b"PASSWORD=hunter2\0".as_slice().into(),
        };
        let answer = v1::GetEnvironmentResponse {
            environment: Some(message.clone()),
            ..Default::default()
        };
        let shown = format!("{:?} {answer:?}", Environment::from(message));
        assert!(
            !shown.contains("hunter2") && !shown.contains("104"),
            "{shown}"
        );
    }
}
