//! What people should know of a move that can be made.

use pc_image::{ExternalFile, ExternalKind, InetState, OpenFile, OpenFileId, OpenFileKind, rules};

use crate::foretold::Foretold;
use crate::settings::Settings;

/// A process can be moved, and this should be known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Options without which the copy is not made.
    pub needs: Vec<Need>,
    /// What will be different afterwards, and how that can be changed.
    pub notices: Vec<String>,
}

/// An option that a move needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What to type: `pc-restore --tcp-established`.
    pub option: String,
    /// What needs it.
    pub why: String,
}

impl Report {
    /// Of a process as it was found.
    pub(crate) fn of(settings: &Settings, foretold: &Foretold) -> Self {
        let mut report = Self::default();
        for file in &foretold.files {
            let named = foretold.descriptors(file.id);
            match &file.kind {
                OpenFileKind::External(external) => report.external(&named, external),
                _ => report.connection(settings, &named, file),
            }
        }
        if foretold.task.sid != foretold.task.pid {
            report.notice(
                "its session is led from outside: the copy gets pc-restore's, or with --detach a new one",
            );
        }
        report
    }

    /// The move needs an option; said once, with all that needs it.
    pub(crate) fn need(&mut self, option: impl Into<String>, why: impl Into<String>) {
        let (option, why) = (option.into(), why.into());
        match self.needs.iter_mut().find(|need| need.option == option) {
            Some(need) => need.why = format!("{}; {why}", need.why),
            None => self.needs.push(Need { option, why }),
        }
    }

    /// Something to know.
    pub(crate) fn notice(&mut self, text: impl Into<String>) {
        self.notices.push(text.into());
    }

    fn external(&mut self, named: &str, external: &ExternalFile) {
        let id = &external.id;
        let what = match external.kind {
            ExternalKind::Terminal => "a terminal",
            ExternalKind::PipeRead => "a pipe whose other end is outside, and is read from",
            ExternalKind::PipeWrite => "a pipe whose other end is outside, and is written to",
        };
        let option = format!("pc-restore --attach {id}=WHERE");
        if rules::needs_attach(external).is_some() {
            return self.need(option, format!("{named} is {what} (WHERE is a path, fd:N or null)"));
        }
        let becomes = match external.kind {
            ExternalKind::Terminal => "pc-restore's terminal, or /dev/null where it has none",
            _ => "pc-restore's stderr",
        };
        self.notice(format!("{named} is {what}: it becomes {becomes}, unless {option} says else"));
    }

    fn connection(&mut self, settings: &Settings, named: &str, file: &OpenFile) {
        let OpenFileKind::Inet(inet) = &file.kind else { return };
        let InetState::Closed { local: Some(local), peer: Some(peer) } = &inet.state else { return };
        let what = format!("{named} is a TCP connection from {local} to {peer}");
        match settings.tcp_established {
            true => self.need("pc-restore --tcp-established", what),
            false => self.notice(format!("{what}: the copy finds it closed")),
        }
    }
}

impl Foretold {
    /// The descriptors of an open file: "descriptor 3", "descriptors 3, 9".
    fn descriptors(&self, file: OpenFileId) -> String {
        let all = self.table.fds.iter().filter(|fd| fd.file == file);
        let all: Vec<String> = all.map(|fd| fd.fd.to_string()).collect();
        let plural = if all.len() > 1 { "s" } else { "" };
        format!("descriptor{plural} {}", all.join(", "))
    }
}
