//! Other programs: started so that they cannot outlive the tool, and one machine at a time.
//!
//! A child is tied to the tool by the kernel (its parent-death signal), not by a signal handler:
//! however the tool ends (Ctrl-C, SIGTERM, SIGKILL, a panic), nothing is left running.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Ties the program to this process: the kernel kills it when the thread that starts it ends,
/// so a thread that starts programs waits for them.
pub fn tied(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: between fork and exec the closure only makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The tool may have died before the call above.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            Ok(())
        })
    }
}

/// A tied command.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    tied(&mut command);
    command
}

/// Runs a command to its end and gives what it wrote to stdout; fails with what it wrote to stderr.
pub fn output_of(command: &mut Command) -> Result<Vec<u8>> {
    let name = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting `{name}`"))?;
    if !output.status.success() {
        bail!("`{name}` failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output.stdout)
}

/// The command as a user would type it, without its environment.
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Whether the program can be started at all.
pub fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// A child that is killed when it is dropped.
pub struct Owned(pub Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // Failing means that it is gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that runs on its own, its output going to a file, with a limit to its time.
pub struct Background {
    child: Owned,
    name: String,
    log: PathBuf,
    start: Instant,
    limit: Duration,
}

impl Background {
    /// Starts it.
    pub fn start(command: &mut Command, limit: Duration, log: &Path) -> Result<Background> {
        let name = shown(command);
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let error_file = file.try_clone().context("sharing the log file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(error_file)
            .spawn()
            .with_context(|| format!("starting `{name}`"))?;
        Ok(Background { child: Owned(child), name, log: log.to_path_buf(), start: Instant::now(), limit })
    }

    /// Waits for its end; gives its status and its output.
    pub fn finish(mut self) -> Result<(ExitStatus, String)> {
        let (name, log) = (&self.name, self.log.display());
        let status = loop {
            let status = self.child.0.try_wait().with_context(|| format!("waiting for `{name}`"))?;
            if let Some(status) = status {
                break status;
            }
            if self.start.elapsed() > self.limit {
                bail!("`{name}` took more than {} s; its output is in {log}", self.limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = std::fs::read(&self.log).with_context(|| format!("reading {log}"))?;
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }
}
