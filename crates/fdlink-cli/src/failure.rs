//! How this program says that it failed: what, why, and what may help.

use std::error::Error;
use std::fmt;

/// The exit status of our own failures, as env(1), nohup(1) and timeout(1) have it.
pub(crate) const OUR_FAILURE: u8 = 125;

/// A failure, as it is told to the user.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    causes: Vec<String>,
    hint: Option<String>,
    /// The exit status.
    pub(crate) code: u8,
}

impl Failure {
    /// `what` failed.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), causes: Vec::new(), hint: None, code: OUR_FAILURE }
    }

    /// Because of `cause`, and what caused that in turn.
    pub(crate) fn because(mut self, cause: &dyn Error) -> Self {
        let mut next = Some(cause);
        while let Some(cause) = next {
            self.causes.push(cause.to_string());
            next = cause.source();
        }
        self
    }

    /// What may help.
    pub(crate) fn hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Ends with another exit status than 125.
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fdlink: {}", self.what)?;
        for cause in &self.causes {
            write!(f, ": {}", plain(cause))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl From<fdlink_sandbox::Error> for Failure {
    fn from(error: fdlink_sandbox::Error) -> Self {
        let hint = error.cure();
        let mut failure = Self::new(error.to_string()).hint(hint);
        if let Some(cause) = error.source() {
            failure = failure.because(cause);
        }
        failure
    }
}

/// Without the errno's number: the words say the same.
fn plain(cause: &str) -> &str {
    match cause.rsplit_once(" (os error ") {
        Some((words, number)) if number.ends_with(')') => words,
        _ => cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_why_and_what_helps() {
        let cause = std::io::Error::from_raw_os_error(13);
        let failure = Failure::new("x.json could not be made").because(&cause);
        assert_eq!(failure.to_string(), "fdlink: x.json could not be made: Permission denied");
        let failure = failure.hint("choose another folder".to_owned()).code(1);
        assert!(failure.to_string().ends_with("\n  hint: choose another folder"));
        assert_eq!(failure.code, 1);
    }
}
