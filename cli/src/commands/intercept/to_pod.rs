//! `--to-pod LOCAL[:POD-PORT]`.

use std::str::FromStr;

use kvpn_proto::v1::ToPod;

use super::port::port_number;

/// A port of the laptop, and the one of a pod's localhost that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToPodSpec {
    local: u16,
    port: u16,
}

impl FromStr for ToPodSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, protocol)) = text.split_once('/') {
            return Err(format!(
                "`{protocol}` cannot be carried into a pod, only TCP, which is not written"
            ));
        }
        let read = |what: &str, text: &str| {
            port_number(text).ok_or_else(|| {
                format!("the {what} port `{text}` is not a number between 1 and 65535")
            })
        };
        Ok(match text.split_once(':') {
            Some((local, port)) => Self {
                local: read("local", local)?,
                port: read("pod's", port)?,
            },
            None => {
                let port = read("pod's", text)?;
                Self { local: port, port }
            }
        })
    }
}

impl From<ToPodSpec> for ToPod {
    fn from(spec: ToPodSpec) -> Self {
        Self {
            local: spec.local.into(),
            port: spec.port.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_number_for_both_sides_or_two() {
        let spec = |local, port| Ok(ToPodSpec { local, port });
        assert_eq!("9901".parse(), spec(9901, 9901));
        assert_eq!("15000:9901".parse(), spec(15000, 9901));
    }

    #[test]
    fn what_cannot_be_carried_says_why() {
        for (text, why) in [
            ("", "the pod's port"),
            ("admin", "the pod's port"),
            ("0:9901", "the local port"),
            ("15000:", "the pod's port"),
            ("15000:admin", "the pod's port"),
            ("15000:65536", "the pod's port"),
            ("53/udp", "`udp` cannot be carried"),
            ("5353:53/udp", "`udp` cannot be carried"),
        ] {
            let error = text.parse::<ToPodSpec>().unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }
}
