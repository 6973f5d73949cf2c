//! Two domains that are given each other: each finds `peer=NUMBER` on its command line.
//!
//! Xen numbers domains as they come, so that both numbers are known before either domain is there: one that is never let run
//! tells which comes next. The first says what it offers, a line with `@offer WORDS`, and these words, such as a grant
//! reference and a port, go onto the command line of the second, which is made then.

use anyhow::{Context, Result, bail, ensure};

use super::dom0::Session;
use super::domain::{COMMAND_LIMIT, config_of, destroy, log_of, quoted};

/// One of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: u32,
}

/// Their names, from that of the configuration from which both are made.
pub fn names(name: &str) -> [String; 2] {
    [format!("{name}-1"), format!("{name}-2")]
}

/// Two domains that are to be made.
pub struct Plan {
    peers: [Peer; 2],
    /// What else their command lines say.
    words: String,
}

impl Plan {
    /// Finds out which numbers they will have. Both are made from the configuration in dom0 of this name; no other domain is to be
    /// made meanwhile. Their command lines begin with these words.
    pub fn new(session: &mut Session, name: &str, words: &str) -> Result<Plan> {
        let names = names(name);
        for peer in &names {
            let config = config_of(peer);
            session.must(&format!("cp {} {config}; rm -f {}", config_of(name), log_of(peer)), COMMAND_LIMIT)?;
            append(session, peer, &format!("name = {}", quoted(peer)))?;
        }
        let [first, _] = &names;
        session.must(&format!("xl create -p {}", config_of(first)), COMMAND_LIMIT)?;
        let number = session.must(&format!("xl domid {first}"), COMMAND_LIMIT)?;
        destroy(session, first)?;
        session.must(&format!("rm -f {}", log_of(first)), COMMAND_LIMIT)?;
        let number: u32 = number.trim().parse().with_context(|| format!("reading {number:?} as a domain's number"))?;
        let mut numbers = number + 1..;
        let peers = names.map(|name| Peer { name, number: numbers.next().unwrap_or(0) });
        Ok(Plan { peers, words: words.into() })
    }

    /// The first and the second.
    pub fn peers(&self) -> &[Peer; 2] {
        &self.peers
    }

    /// Starts the first, and waits for its offer.
    pub fn start_first(&self, session: &mut Session) -> Result<String> {
        let [first, second] = &self.peers;
        self.create(session, first, second, "", "")?;
        let log = log_of(&first.name);
        let said = session.run(&format!("until_said {} @offer && grep @offer {log}", first.name), COMMAND_LIMIT)?;
        if said.status != 0 {
            let console = session.run(&format!("cat {log}"), COMMAND_LIMIT)?.text();
            bail!("{} offers nothing; its console:\n{console}", first.name);
        }
        offer(&said.text()).with_context(|| format!("reading what {} offers", first.name))
    }

    /// Creates the second, with what the first offers, and with an option of `xl create`, such as `-p` for one that is held.
    pub fn create_second(&self, session: &mut Session, offer: &str, option: &str) -> Result<()> {
        let [first, second] = &self.peers;
        self.create(session, second, first, offer, option)
    }

    fn create(&self, session: &mut Session, own: &Peer, other: &Peer, offer: &str, option: &str) -> Result<()> {
        let words = [&self.words, &format!("peer={}", other.number), offer];
        let words: Vec<&str> = words.into_iter().filter(|words| !words.is_empty()).collect();
        append(session, &own.name, &format!("cmdline = {}", quoted(&words.join(" "))))?;
        session.must(&format!("xl create {option} {}", config_of(&own.name)), COMMAND_LIMIT)?;
        let number = session.must(&format!("xl domid {}", own.name), COMMAND_LIMIT)?;
        ensure!(
            number.trim() == own.number.to_string(),
            "{} is domain {} instead of {}",
            own.name,
            number.trim(),
            own.number
        );
        Ok(())
    }
}

/// Puts another line into a domain's configuration: of two with the same key `xl` takes the later.
fn append(session: &mut Session, name: &str, line: &str) -> Result<()> {
    let answer = session.run_with_input(
        &format!("cat >> {}", config_of(name)),
        format!("{line}\n").as_bytes(),
        COMMAND_LIMIT,
    )?;
    ensure!(answer.status == 0, "writing the configuration of {name}: {}", answer.text());
    Ok(())
}

/// The words of an offer.
fn offer(console: &str) -> Result<String> {
    let words = console.lines().find_map(|line| line.split_once("@offer ")).map(|(_, words)| words.trim());
    match words {
        // Nothing that means something to `xl`, whatever a unikernel says.
        Some(words) if words.chars().all(|c| c.is_ascii_alphanumeric() || "=, ".contains(c)) => Ok(words.into()),
        Some(words) => bail!("{words:?} has more than letters, digits, '=' and ','"),
        None => bail!("there is no line with `@offer `"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_what_follows_the_word() {
        assert_eq!(offer("[info] up\r\n[info] @offer reference=8 port=3\r\nmore").unwrap(), "reference=8 port=3");
        assert!(offer("offer reference=8").is_err());
        assert!(offer("@offer \"; reboot").is_err());
        assert!(offer("").is_err());
    }
}
