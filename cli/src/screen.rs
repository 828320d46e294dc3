//! Text that is shown in place, on a screen of its own that the terminal leaves
//! as if nothing had been there.

use std::io::{Write, stdout};

/// The alternate screen, without a cursor (xterm's control sequences).
const OPEN: &str = "\x1b[?1049h\x1b[?25l";
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";

const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// A terminal that does not tell its size.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// The screen; dropping it gives the terminal back.
pub(crate) struct Screen(());

impl Screen {
    pub(crate) fn open() -> Self {
        write(OPEN);
        Self(())
    }

    /// Replaces what is shown by as much of the text as fits.
    pub(crate) fn show(&mut self, text: &str) {
        let size = terminal_size::terminal_size();
        let (width, height) = size.map_or(USUAL_SIZE, |(width, height)| {
            (width.0.into(), height.0.into())
        });
        write(&frame(text, width, height));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write(CLOSE);
    }
}

fn frame(text: &str, width: usize, height: usize) -> String {
    let count = text.lines().count();
    // The last line tells what does not fit.
    let shown = if count > height {
        height.saturating_sub(1)
    } else {
        count
    };
    let mut lines: Vec<String> = text
        .lines()
        .take(shown)
        .map(|line| line.chars().take(width).collect())
        .collect();
    if count > shown {
        lines.push(format!("… and {} more", count - shown));
    }
    let mut frame = HOME.to_owned();
    // No newline after the last line, which would scroll.
    frame += &lines.join(&format!("{CLEAR_LINE}\r\n"));
    frame + CLEAR_LINE + CLEAR_BELOW
}

fn write(text: &str) {
    let mut stdout = stdout().lock();
    // A terminal that is gone needs nothing.
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str, width: usize, height: usize) -> Vec<String> {
        let frame = anstream::adapter::strip_str(&frame(text, width, height)).to_string();
        frame.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_fits_is_shown_whole() {
        assert_eq!(plain("a\nb\n", 80, 2), ["a", "b"]);
    }

    #[test]
    fn what_does_not_fit_is_cut_and_counted() {
        let shown = plain("header\nlong line\nb\nc\n", 4, 3);
        assert_eq!(shown, ["head", "long", "… and 2 more"]);
    }
}
