//! Every timing constant of the program, in one place, with its reason.

use std::time::Duration;

/// All waits, intervals and limits in time. Tests shrink them; nothing else does.
#[derive(Debug, Clone)]
pub struct Timing {
    /// How often LocalAPI is asked for its own state. Its `Self.Online` is the coordinator
    /// signal, and an answer costs it under a millisecond.
    pub tailnet_poll: Duration,
    /// How often the whole peer list is read again even if the bus was silent.
    pub tailnet_refresh: Duration,
    /// How often the tailnet's packet filter is read again even if the bus was silent.
    pub packet_filter: Duration,
    /// Longest pace at which a peer is asked whether it is met directly on a network that is
    /// not known.
    pub network_ask: Duration,
    /// How often `dns.names` are resolved again.
    pub dns_refresh: Duration,
    /// Limit of resolving one of them.
    pub dns_limit: Duration,
    /// Limit of a LocalAPI call, the bus excepted.
    pub localapi_read: Duration,
    /// Limit of a LocalAPI connect.
    pub localapi_connect: Duration,
    /// After which age a caller's identity is asked for again before a request is served.
    pub whois_age: Duration,
    /// When WhoIs says 404 for a loopback connection in userspace mode: the further tries,
    /// each measured from the first. tailscaled registers a forwarded connection only after
    /// it has dialled us.
    pub whois_retries: [Duration; 3],
    /// How long WhoIs may be silent about a connection that the kernel knows for another
    /// program's. tailscaled itself takes about 180 ms to know nobody.
    pub whois_silence: Duration,
    /// How often a usable peer is probed, and its list read.
    pub probe: Duration,
    /// The same for a peer whose reports come in, while the mesh is whole: what changes there
    /// is told at once, so that this only keeps the measure of the way.
    pub probe_listed: Duration,
    /// Shortest time from one line of a report to the next.
    pub report_spacing: Duration,
    /// Longest one while there is work here.
    pub report_busy: Duration,
    /// Longest one while there is none. For as many peers as there are, this is what a quiet
    /// mesh costs.
    pub report_idle: Duration,
    /// The same where every word costs: on a battery, on a metered link.
    pub report_sparing: Duration,
    /// How long what a node said of itself is believed when nothing more is heard. While its
    /// reports come in, no news is news: then it is half as long again as it announced, if
    /// that is more.
    pub report_believed: Duration,
    /// How often this node's own engines are asked what is loaded.
    pub probe_local: Duration,
    /// Limit of one probe.
    pub probe_limit: Duration,
    /// First wait before a node without a server is looked at again; doubled up to
    /// [`Timing::probe_backoff_max`].
    pub probe_backoff: Duration,
    /// Longest wait before a node without a server is looked at again.
    pub probe_backoff_max: Duration,
    /// Misses in a row after which a path counts as dead.
    pub probe_misses: u32,
    /// Connect limit on this machine.
    pub connect_loopback: Duration,
    /// Connect limit on the local network.
    pub connect_lan: Duration,
    /// Connect limit over the tailnet: a cold WireGuard handshake retries after 5 s.
    pub connect_tailnet: Duration,
    /// How long the other end of a connection that we made may leave unacknowledged what we sent,
    /// before the connection counts as broken. Where the system can tell.
    pub unacknowledged: Duration,
    /// On a path that answered lately: how long a connect may stay open before the next
    /// candidate races it (or four round trips, if that is longer).
    pub connect_race: Duration,
    /// How recently a path must have answered to be raced after [`Timing::connect_race`].
    pub recently: Duration,
    /// While a request waits for its first byte: how often its node is probed.
    pub vigil: Duration,
    /// How many of those probes in a row may be missed before the request moves on.
    pub vigil_misses: u32,
    /// After the first byte: how long a stream may be silent although its node answers.
    pub idle_after_first_byte: Duration,
    /// How long the beginning of a hosted provider's answer is awaited, unless its
    /// `timeoutSeconds` says: nothing else tells that it shows life.
    pub hosted_head: Duration,
    /// How long a request waits for another look at the node that was the last to have its
    /// model, and was just lost.
    pub second_look: Duration,
    /// How long a model stays listed after its last node was lost.
    pub linger: Duration,
    /// How long an idle connection to a peer or engine is kept.
    pub pool_idle: Duration,
    /// How long a client may take to send its first request head.
    pub head: Duration,
    /// How long a follower of requests waits for the next one before it is told of none.
    pub requests_wait: Duration,
    /// How long a connection may be idle between requests. Longer than [`Timing::pool_idle`]:
    /// whoever keeps a connection should be the one to close it, or a request crosses the
    /// closing on its way.
    pub idle_connection: Duration,
    /// How long a client may pause inside a request body.
    pub body_pause: Duration,
    /// How long a node that said it is busy rests for that model.
    pub busy_rest: Duration,
    /// How long the rung says `starting`.
    pub starting: Duration,
    /// How long a better rung must hold before it is believed.
    pub rung_hold: Duration,
    /// How long the rung stays as it was after this machine slept.
    pub rung_freeze: Duration,
    /// How long tailscaled may say `Starting` or `NoState` before its tailnet counts as lost.
    pub backend_starting: Duration,
    /// Without a coordinator: how long the tailnet may be silent before it counts as lost. A
    /// cold pair without its relay needs two tries of 11 s.
    pub tailnet_silence: Duration,
    /// How long a shutdown waits for running requests.
    pub drain: Duration,
    /// How often the saved state is written when it changed.
    pub save: Duration,
    /// How long nobody has to have asked this node's engines before a model in memory that was
    /// never measured is.
    pub measure: Duration,
    /// How often it is looked at what this machine runs on, and at the clock.
    pub machine: Duration,
    /// How often a peer is asked over the tailnet for its key again, while nothing has changed:
    /// a pin's age is counted from the last time.
    pub hello: Duration,
    /// First wait before a hello that failed is tried again; doubled up to [`Timing::hello`].
    pub hello_retry: Duration,
    /// Limit of one hello and of one meeting, from the first byte to the answer.
    pub hello_limit: Duration,
    /// How often a pinned peer is met on the local network while the tailnet reaches it.
    pub meet: Duration,
    /// How often while the tailnet does not.
    pub meet_dead: Duration,
    /// How long an address is asked often for a peer that was met there and is no more. Others
    /// are asked ever less often, at the least every 150 times [`Timing::meet_dead`].
    pub meet_lately: Duration,
    /// How long an address rests at which somebody with another key answers.
    pub meet_stranger: Duration,
    /// Limit of the ping by which we learn whether a caller on the local network could use the
    /// tailnet.
    pub lan_ping: Duration,
    /// How long the answer to that ping holds.
    pub lan_ping_kept: Duration,
    /// Limit of a TLS handshake with somebody who has not shown a key yet.
    pub handshake: Duration,
    /// How soon a connection ends whose pin has died.
    pub pin_dead: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let s = Duration::from_secs;
        let ms = Duration::from_millis;
        Timing {
            tailnet_poll: s(2),
            tailnet_refresh: s(30),
            packet_filter: s(180),
            network_ask: s(10),
            dns_refresh: s(60),
            dns_limit: s(5),
            localapi_read: s(3),
            localapi_connect: s(1),
            whois_age: s(10),
            whois_retries: [ms(20), ms(60), ms(150)],
            whois_silence: ms(250),
            probe: s(5),
            probe_listed: s(60),
            report_spacing: ms(250),
            report_busy: s(2),
            report_idle: s(15),
            report_sparing: s(60),
            report_believed: s(10),
            probe_local: s(2),
            probe_limit: s(2),
            probe_backoff: s(10),
            probe_backoff_max: s(300),
            probe_misses: 2,
            connect_loopback: s(1),
            connect_lan: s(2),
            connect_tailnet: s(5),
            unacknowledged: s(10),
            connect_race: ms(300),
            recently: s(30),
            vigil: ms(300),
            vigil_misses: 3,
            idle_after_first_byte: s(300),
            hosted_head: s(300),
            second_look: s(1),
            linger: s(60),
            pool_idle: s(60),
            head: s(10),
            requests_wait: Duration::from_secs(20),
            idle_connection: s(75),
            body_pause: s(30),
            busy_rest: s(3),
            starting: s(15),
            rung_hold: s(4),
            rung_freeze: s(10),
            backend_starting: s(15),
            tailnet_silence: s(22),
            drain: s(30),
            save: s(5),
            measure: s(20),
            machine: s(2),
            hello: s(600),
            hello_retry: s(15),
            hello_limit: s(10),
            meet: s(20),
            meet_dead: s(2),
            meet_lately: s(3600),
            meet_stranger: s(600),
            lan_ping: ms(1500),
            lan_ping_kept: s(5),
            handshake: s(5),
            pin_dead: s(1),
        }
    }
}

impl Timing {
    /// What waits for its turn, shortened so that a test or the demo need not. The limits after
    /// which something counts as silent are shortened less or not at all: they cost time only
    /// where something is silent, and on a busy machine an answer may well take a second.
    pub fn shrunk() -> Self {
        let ms = Duration::from_millis;
        Timing {
            tailnet_poll: ms(100),
            tailnet_refresh: ms(500),
            network_ask: ms(500),
            probe: ms(200),
            probe_listed: ms(600),
            report_spacing: ms(50),
            report_busy: ms(250),
            report_idle: ms(1000),
            report_sparing: ms(3000),
            report_believed: ms(1500),
            probe_local: ms(150),
            probe_limit: ms(1500),
            probe_backoff: ms(200),
            probe_backoff_max: ms(2000),
            connect_lan: ms(500),
            connect_tailnet: ms(1000),
            unacknowledged: Duration::from_secs(10),
            second_look: ms(900),
            linger: ms(3000),
            busy_rest: ms(300),
            starting: ms(1000),
            rung_hold: ms(300),
            rung_freeze: ms(500),
            backend_starting: ms(1000),
            tailnet_silence: ms(1500),
            save: ms(200),
            drain: ms(2000),
            machine: ms(100),
            hello: ms(2000),
            hello_retry: ms(200),
            hello_limit: ms(2000),
            meet: ms(400),
            meet_dead: ms(150),
            lan_ping: ms(300),
            lan_ping_kept: ms(300),
            handshake: ms(1000),
            pin_dead: ms(200),
            ..Timing::default()
        }
    }
}
