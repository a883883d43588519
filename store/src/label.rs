//! What a checkpoint may be called.

/// In bytes.
const LONGEST: usize = 200;

/// What means the last checkpoint.
pub const LATEST: &str = "latest";

/// Whether a checkpoint may be called so.
///
/// # Errors
/// Why it may not, with the remedy.
pub fn check(label: &str) -> Result<(), String> {
    let problem = if label.is_empty() {
        "is empty"
    } else if label.len() > LONGEST {
        "is longer than 200 bytes"
    } else if label == LATEST {
        "already means the last checkpoint"
    } else if label.contains('~') {
        "contains ~, which counts checkpoints back"
    } else if label.contains(|c: char| c.is_control() || c.is_whitespace()) {
        "contains blanks or control characters"
    } else if label.contains(is_invisible) {
        "contains characters that are not to be seen, or that turn the direction of others"
    } else if label.len() == 16 && label.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        "looks like the id of a checkpoint"
    } else {
        return Ok(());
    };
    Err(format!("the label {label:?} {problem}; choose another"))
}

/// Of Unicode's Default_Ignorable_Code_Point and Bidi_Control, all that are no letters: two labels that look alike would differ.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}
