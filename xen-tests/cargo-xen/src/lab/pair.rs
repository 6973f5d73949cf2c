//! Two domains that know each other, in one of two ways.
//!
//! A [`Plan`] gives each the other's number, `peer=NUMBER` on its command line. Xen numbers domains as they come, so that both
//! numbers are known before either domain is there: one that is never let run tells which comes next. The first says what it
//! offers, a line with `@offer WORDS`, and these words, such as a grant reference and a port, go onto the command line of the
//! second, which is made then.
//!
//! [`start_ends`] makes a device between them, in xenstore, as a toolstack does: the first has the front end, the second the back
//! end, and they find each other there.

use anyhow::{Context, Result, bail, ensure};

use super::dom0::Session;
use super::domain::{COMMAND_LIMIT, config_of, log_of, quoted};

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
        let [first, second] = &names;
        let number = session.must(
            &format!(
                "{}; {}; xl create -p {} && xl domid {first} && xl destroy {first} && rm -f {}",
                made(name, first),
                made(name, second),
                config_of(first),
                log_of(first)
            ),
            COMMAND_LIMIT,
        )?;
        let number = number_in(&number)?;
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
        self.create(session, first, second, "")?;
        unpause(session, first)?;
        let log = log_of(&first.name);
        let said = session.run(&format!("until_said {} @offer && grep @offer {log}", first.name), COMMAND_LIMIT)?;
        if said.status != 0 {
            let console = session.run(&format!("cat {log}"), COMMAND_LIMIT)?.text();
            bail!("{} offers nothing; its console:\n{console}", first.name);
        }
        offer(&said.text()).with_context(|| format!("reading what {} offers", first.name))
    }

    /// Starts the second, with what the first offers.
    pub fn start_second(&self, session: &mut Session, offer: &str) -> Result<()> {
        self.hold_second(session, offer)?;
        unpause(session, &self.peers[1])
    }

    /// Creates the second, which is not let run yet.
    pub fn hold_second(&self, session: &mut Session, offer: &str) -> Result<()> {
        let [first, second] = &self.peers;
        self.create(session, second, first, offer)
    }

    fn create(&self, session: &mut Session, own: &Peer, other: &Peer, offer: &str) -> Result<()> {
        let words = [&self.words, &format!("peer={}", other.number), offer];
        let words: Vec<&str> = words.into_iter().filter(|words| !words.is_empty()).collect();
        let line = format!("cmdline = {}\n", quoted(&words.join(" ")));
        let (config, name) = (config_of(&own.name), &own.name);
        // Of two lines with the same key `xl` takes the later.
        let command = format!("cat >> {config} && xl create -p {config} && xl domid {name}");
        let answer = session.run_with_input(&command, line.as_bytes(), COMMAND_LIMIT)?;
        ensure!(answer.status == 0, "{name} could not be created:\n{}", answer.text());
        let number = number_in(&answer.text())?;
        ensure!(number == own.number, "{} is domain {number} instead of {}", own.name, own.number);
        Ok(())
    }
}

/// Starts two domains, both from the configuration in dom0 of this name, that are the ends of a device of this class.
pub fn start_ends(session: &mut Session, name: &str, class: &str) -> Result<[Peer; 2]> {
    let mut create = |peer: String| -> Result<Peer> {
        let command = format!("{}; xl create -p {} && xl domid {peer}", made(name, &peer), config_of(&peer));
        let number = number_in(&session.must(&command, COMMAND_LIMIT)?)?;
        Ok(Peer { name: peer, number })
    };
    let [first, second] = names(name);
    let peers = [create(first)?, create(second)?];
    let [first, second] = &peers;
    session.must(&format!("make_device {class} {} {}", first.number, second.number), COMMAND_LIMIT)?;
    peers.iter().try_for_each(|peer| unpause(session, peer))?;
    Ok(peers)
}

/// The command line by which one of two has a configuration of its own, and no past.
fn made(name: &str, peer: &str) -> String {
    let own_name = quoted(peer);
    let (config, own, log) = (config_of(name), config_of(peer), log_of(peer));
    format!("{{ cat {config}; echo 'name = {own_name}'; }} > {own}; rm -f {log}")
}

fn unpause(session: &mut Session, peer: &Peer) -> Result<()> {
    session.must(&format!("xl unpause {}", peer.name), COMMAND_LIMIT).map(drop)
}

/// A domain's number, behind what `xl create` says.
fn number_in(output: &str) -> Result<u32> {
    let last = output.lines().last().unwrap_or_default();
    last.trim().parse().with_context(|| format!("reading a domain's number in {output:?}"))
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
