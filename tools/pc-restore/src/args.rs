//! The command line of pc-restore.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use pc_cli::CommonArgs;
use pc_image::NamespaceKind;
use pc_rebuild::{Attach, Cgroups, Join, Settings};

/// Restores a process from a stream on standard input, and lets it go on.
///
/// In the foreground, signals are passed on to the process and pc-restore ends as it does, with its status (125 for a
/// failure of pc-restore itself); with --detach it returns once the process runs. Nothing runs before the stream is
/// complete and committed; any failure before that leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "pc-restore", version, max_term_width = 100)]
pub struct Args {
    /// Return once the process runs; it gets a session of its own
    #[arg(long)]
    pub detach: bool,

    /// Restore into a new pid namespace, with a small init and a /proc of its own
    #[arg(long)]
    pub new_pid_ns: bool,

    /// Leave the process stopped (SIGSTOP) before its first instruction
    #[arg(long)]
    pub leave_stopped: bool,

    /// Write the pid of the process to FILE once it runs (as pc-restore's pid namespace sees it)
    #[arg(long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,

    /// What a terminal or pipe that reaches outside becomes: a path, fd:N of pc-restore's own, or null
    #[arg(long, value_name = "ID=PATH|fd:N|null", value_parser = parse_attach)]
    pub attach: Vec<(String, Attach)>,

    /// The namespace that the process is to have where it was in one that was not pc-dump's own: of KIND user, net, uts,
    /// ipc, mnt or cgroup; a file like /run/netns/NAME, that of process N, or pc-restore's own
    #[arg(long, value_name = "KIND=PATH|pid:N|own", value_parser = parse_join)]
    pub join: Vec<(NamespaceKind, Join)>,

    /// The cgroups that the process is to be in: a cgroup's folder (may be repeated), those that it was in, or pc-restore's
    #[arg(long, value_name = "PATH|keep|none", default_value = "none")]
    pub cgroup: Vec<PathBuf>,

    /// Go on with established TCP connections of the stream; their addresses may come with --on-ready
    #[arg(long, conflicts_with = "tcp_close")]
    pub tcp_established: bool,

    /// Restore a stream with established TCP connections; the process finds them closed by the other side
    #[arg(long)]
    pub tcp_close: bool,

    /// How packets are held back until connections go on
    #[arg(long, value_name = "HOW", value_enum, default_value_t, requires = "tcp_established")]
    pub network_lock: NetworkLock,

    /// Run CMD by sh once everything is built, before the process runs; if it fails, so does the restore
    #[arg(long, value_name = "CMD")]
    pub on_ready: Option<String>,

    /// Run CMD by sh if the process does not come to run after the command of --on-ready has begun
    #[arg(long, value_name = "CMD", requires = "on_ready")]
    pub on_failed: Option<String>,

    /// Run CMD by sh once the process runs
    #[arg(long, value_name = "CMD")]
    pub on_running: Option<String>,

    /// Let the process run at Commit, without waiting for the end of input
    #[arg(long)]
    pub run_at_commit: bool,

    /// Only keep the rounds before round K, and begin to build with it
    #[arg(long, value_name = "K", default_value_t = 0, conflicts_with = "no_pipeline")]
    pub start_round: u32,

    /// Keep everything, and build only when the stream is complete
    #[arg(long)]
    pub no_pipeline: bool,

    /// Answer the source (pc-dump --handover) on standard output: it ends the original once the copy runs, which is at
    /// Commit
    #[arg(long)]
    pub handover: bool,

    /// With --handover: take the source for gone after so much silence
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = pc_cli::parse_timeout, requires = "handover")]
    pub timeout: Duration,

    #[command(flatten)]
    pub common: CommonArgs,
}

/// How packets of connections are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum NetworkLock {
    /// By rules of nf_tables
    #[default]
    Nftables,
    /// Not at all: you see to it
    Skip,
}

impl Args {
    /// How the process is to be restored.
    pub fn settings(&self) -> Settings {
        Settings {
            detach: self.detach,
            new_pid_ns: self.new_pid_ns,
            no_pipeline: self.no_pipeline,
            start_round: self.start_round,
            run_at_commit: self.run_at_commit,
            handover: self.handover,
            leave_stopped: self.leave_stopped,
            attach: self.attach.iter().cloned().collect(),
            join: self.join.iter().cloned().collect(),
            cgroups: self.cgroups(),
            tcp_established: self.tcp_established,
            tcp_close: self.tcp_close,
            network_lock: match self.network_lock {
                NetworkLock::Nftables => pc_rebuild::NetworkLock::Nftables,
                NetworkLock::Skip => pc_rebuild::NetworkLock::Skip,
            },
            late_addresses: self.tcp_established || self.on_ready.is_some(),
            on_ready: None,
            cancel: None,
        }
    }
}

impl Args {
    fn cgroups(&self) -> Cgroups {
        match self.cgroup.as_slice() {
            [one] if one.as_os_str() == "none" => Cgroups::None,
            [one] if one.as_os_str() == "keep" => Cgroups::Keep,
            folders => Cgroups::At(folders.to_vec()),
        }
    }

    /// What options say together that no one of them says alone.
    pub fn judge(&self) -> Result<(), String> {
        if let Some((kind, _)) = self
            .join
            .iter()
            .enumerate()
            .find_map(|(at, (kind, _))| self.join[..at].iter().find(|(other, _)| other == kind))
        {
            return Err(format!("--join {}= is given twice", kind.name()));
        }
        let mounts =
            self.join.iter().any(|(kind, join)| *kind == NamespaceKind::Mnt && !matches!(join, Join::Own));
        if self.new_pid_ns && mounts {
            return Err("--new-pid-ns makes a mount namespace, and --join mnt= gives another".to_owned());
        }
        let words =
            self.cgroup.iter().filter(|place| ["none", "keep"].map(Path::new).contains(&place.as_path()));
        if self.cgroup.len() > 1 && words.count() > 0 {
            return Err("--cgroup none and --cgroup keep stand alone".to_owned());
        }
        Ok(())
    }
}

/// `net=/run/netns/x`, `user=pid:77`, `mnt=own`. Looked up now, and never again.
fn parse_join(text: &str) -> Result<(NamespaceKind, Join), String> {
    let (kind, place) = text.split_once('=').ok_or("expected KIND=PATH, KIND=pid:N or KIND=own")?;
    let kind = NamespaceKind::of_name(kind)
        .ok_or_else(|| format!("{kind}: one of user, net, uts, ipc, mnt, cgroup is wanted"))?;
    let join = match (place, place.strip_prefix("pid:")) {
        ("own", _) => Join::Own,
        (_, Some(pid)) => {
            let pid = pid.parse().map_err(|_| format!("{place}: a process's number is wanted"))?;
            Join::of_process(kind, pid).map_err(|why| format!("{place}: {why}"))?
        }
        ("", None) => return Err("a place is wanted".to_owned()),
        (path, None) => Join::of_path(kind, Path::new(path)).map_err(|why| format!("{path}: {why}"))?,
    };
    Ok((kind, join))
}

/// `pipe:1=/var/log/x`, `tty:/dev/pts/3=null`, `pipe:2=fd:5`. The id ends at the first `=`.
fn parse_attach(text: &str) -> Result<(String, Attach), String> {
    let (id, place) = text.split_once('=').ok_or("expected ID=PATH, ID=fd:N or ID=null")?;
    let attach = match (place, place.strip_prefix("fd:")) {
        _ if id.is_empty() || place.is_empty() => return Err("an id and a place are wanted".to_owned()),
        ("null", _) => Attach::Null,
        (_, Some(number)) => {
            let number = number.parse().map_err(|_| format!("{place}: a descriptor's number is wanted"))?;
            Attach::of_number(number).map_err(|why| format!("{place}: {why}"))?
        }
        (path, None) => Attach::Path(path.into()),
    };
    Ok((id.to_owned(), attach))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        assert!(Args::try_parse_from(["pc-restore", "--no-pipeline", "--start-round", "2"]).is_err());
        assert!(Args::try_parse_from(["pc-restore", "--timeout", "2s"]).is_err());
        assert!(Args::try_parse_from(["pc-restore", "--handover", "--timeout", "2s"]).is_ok());
    }

    #[test]
    fn externals_are_attached_to_paths_descriptors_or_nothing() {
        let parsed = |text| parse_attach(text).map(|(id, attach)| (id, format!("{attach:?}")));
        assert_eq!(parsed("pipe:1=null").unwrap(), ("pipe:1".into(), "Null".into()));
        assert_eq!(
            parsed("tty:/dev/pts/3=/a=b").unwrap(),
            ("tty:/dev/pts/3".into(), "Path(\"/a=b\")".into())
        );
        assert!(parsed("pipe:1=fd:2").unwrap().1.starts_with("Fd("));
        for bad in ["pipe:1", "=null", "pipe:1=", "pipe:1=fd:x", "pipe:1=fd:99999"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
