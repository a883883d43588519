//! The tracer: whether it runs, and what is lost without it.

use super::Finding;
use crate::{
    context::Context,
    tracer::{
        self,
        client::{Tracer, socket},
    },
};

const LOST: &str = "programs without the library (static, set-user-id, cleared environment) are seen only while their \
                    parents are there, and not told why; `stasis trace` shows nothing";

const REMEDY: &str = "as root: systemctl enable --now stasis-tracer.socket, or stasis-tracer by hand";

pub fn service(context: &Context) -> Finding {
    match Tracer::connect() {
        Ok(Some(mut tracer)) => match tracer.state() {
            Ok(state) => {
                let missing: Vec<String> =
                    state.missing.iter().map(|(feature, why)| format!("{feature} ({why})")).collect();
                let text = format!(
                    "pid {}, version {}: {}; {} events dropped",
                    tracer.pid(),
                    state.version,
                    state.features.join(", "),
                    state.dropped
                );
                let text = format!("{text}; {}; {}", userfaultfd(context), ids(context));
                if missing.is_empty() {
                    Finding::Works(text)
                } else {
                    let remedy = "a newer kernel has them";
                    Finding::falls(format!("{text}; without {}", missing.join(", ")), remedy)
                }
            }
            Err(error) => Finding::falls(format!("pid {}: {error:#}", tracer.pid()), REMEDY),
        },
        Ok(None) => match socket() {
            Some(path) => Finding::falls(format!("none listens at {}: {LOST}", path.display()), REMEDY),
            None => Finding::falls(format!("STASIS_TRACER is empty: {LOST}"), "unset STASIS_TRACER"),
        },
        Err(error) => Finding::falls(format!("{error:#}: {LOST}"), REMEDY),
    }
}

/// Asks, as a restart of an ordinary user does.
fn ids(context: &Context) -> String {
    match context.address().and_then(|address| tracer::of_ids(&address)) {
        Ok(_) => "gives restarted programs their ids".into(),
        Err(error) => format!("gives no ids ({error:#})"),
    }
}

/// Takes one, as a lazy restart of an ordinary user does.
fn userfaultfd(context: &Context) -> String {
    match context.address().and_then(|address| tracer::userfaultfd(&address)) {
        Ok(_) => "hands out userfaultfds".into(),
        Err(error) => format!("hands out no userfaultfd ({error:#})"),
    }
}
