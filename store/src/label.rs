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
    } else {
        return Ok(());
    };
    Err(format!("the label {label:?} {problem}; choose another"))
}
