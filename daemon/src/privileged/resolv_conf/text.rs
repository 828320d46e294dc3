//! The text that is written into resolv.conf. It embeds, as comments, the text
//! that was there before.

use std::net::IpAddr;

use kvpn_tunnel::dns::parse_resolv_conf;

/// The first line.
const HEADER: &str =
    "# Written by kvpn until it disconnects; the lines marked #kvpn are the file as it was.";

/// Before each line of the original.
const LINE: &str = "#kvpn ";

/// Before the last line of the original, where it had no end of line.
const UNENDED_LINE: &str = "#kvpn-unended ";

/// In place of the original, where there was none.
const NO_FILE: &str = "#kvpn-no-file";

/// Before the line with which our own settings begin.
const SETTINGS: &str = "# Settings of kvpn:";

/// Renders the text for a lease. Keeps the host's search domains (after ours),
/// options and sort list.
pub(super) fn render(
    original: Option<&[u8]>,
    name_servers: &[IpAddr],
    search_domains: &[String],
) -> Vec<u8> {
    let mut text = format!("{HEADER}\n").into_bytes();
    embed(original, &mut text);
    text.extend_from_slice(SETTINGS.as_bytes());
    text.push(b'\n');
    for server in name_servers {
        text.extend_from_slice(format!("nameserver {server}\n").as_bytes());
    }
    let original = String::from_utf8_lossy(original.unwrap_or_default());
    let mut search: Vec<&str> = search_domains.iter().map(String::as_str).collect();
    let theirs = parse_resolv_conf(&original).search;
    for domain in &theirs {
        if !search.contains(&domain.as_str()) {
            search.push(domain);
        }
    }
    if !search.is_empty() {
        text.extend_from_slice(format!("search {}\n", search.join(" ")).as_bytes());
    }
    for line in original.lines() {
        let keyword = line.split_ascii_whitespace().next();
        if matches!(keyword, Some("options" | "sortlist")) {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
    }
    text
}

/// Reads the original from a text that we rendered: `Some(None)` where there
/// was no file; `None` where the text is not ours.
pub(super) fn embedded(text: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut lines = text.split(|octet| *octet == b'\n');
    if lines.next()? != HEADER.as_bytes() {
        return None;
    }
    let mut original = Some(Vec::new());
    for line in lines {
        if let Some(line) = line.strip_prefix(LINE.as_bytes()) {
            let content = original.as_mut()?;
            content.extend_from_slice(line);
            content.push(b'\n');
        } else if let Some(line) = line.strip_prefix(UNENDED_LINE.as_bytes()) {
            original.as_mut()?.extend_from_slice(line);
        } else if line == NO_FILE.as_bytes() {
            original = None;
        } else if line == SETTINGS.as_bytes() {
            return Some(original);
        } else {
            return None;
        }
    }
    None
}

fn embed(original: Option<&[u8]>, text: &mut Vec<u8>) {
    let Some(original) = original else {
        text.extend_from_slice(NO_FILE.as_bytes());
        text.push(b'\n');
        return;
    };
    for line in original.split_inclusive(|octet| *octet == b'\n') {
        if line.ends_with(b"\n") {
            text.extend_from_slice(LINE.as_bytes());
            text.extend_from_slice(line);
        } else {
            text.extend_from_slice(UNENDED_LINE.as_bytes());
            text.extend_from_slice(line);
            text.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rendered(original: Option<&str>, ours: &[&str]) -> String {
        let servers = ["198.18.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let ours: Vec<String> = ours.iter().map(ToString::to_string).collect();
        String::from_utf8(render(original.map(str::as_bytes), &servers, &ours)).unwrap()
    }

    fn settings(text: &str) -> &str {
        text.split_once("# Settings of kvpn:\n").unwrap().1
    }

    #[test]
    fn ours_come_first_and_options_are_kept() {
        let original = "domain old.example\n\
                        search corp.example lan svc.x\n\
                        nameserver 10.0.0.1\n\
                        options ndots:2 edns0\n\
                        sortlist 10.0.0.0/8\n\
                        options rotate\n";
        let text = rendered(Some(original), &["shop.svc.x", "svc.x"]);
        assert_eq!(
            settings(&text),
            "nameserver 198.18.0.1\n\
             nameserver fd00::1\n\
             search shop.svc.x svc.x corp.example lan\n\
             options ndots:2 edns0\n\
             sortlist 10.0.0.0/8\n\
             options rotate\n"
        );
    }

    #[test]
    fn domain_of_the_host_is_searched() {
        let text = rendered(Some("domain corp.example\n"), &["svc.x"]);
        assert!(
            settings(&text).contains("search svc.x corp.example\n"),
            "{text}"
        );
    }

    #[test]
    fn nothing_to_search_makes_no_search_line() {
        let text = rendered(None, &[]);
        assert_eq!(
            settings(&text),
            "nameserver 198.18.0.1\nnameserver fd00::1\n"
        );
    }

    #[test]
    fn name_servers_of_the_host_are_comments_only() {
        let text = rendered(Some("nameserver 10.0.0.1\n"), &[]);
        let servers = parse_resolv_conf(&text).name_servers;
        let expected: [IpAddr; 2] = ["198.18.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(servers, expected);
    }

    #[test]
    fn foreign_text_embeds_nothing() {
        assert_eq!(embedded(b"nameserver 10.0.0.1\n"), None);
        assert_eq!(embedded(b""), None);
        let ours = rendered(Some("nameserver 10.0.0.1\n"), &[]);
        let cut = ours.split_once(SETTINGS).unwrap().0;
        assert_eq!(embedded(cut.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_original_is_embedded_whole(
            original in proptest::option::of(proptest::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'#'), any::<u8>()], 0..200)),
        ) {
            let text = render(original.as_deref(), &["198.18.0.1".parse().unwrap()], &[]);
            prop_assert_eq!(embedded(&text), Some(original));
        }
    }
}
