use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn ip(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + n).into()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_neighbour_that_answers_gets_what_waited_in_order() {
    let (start, mut cache) = (Instant::now(), Neighbors::default());
    assert_eq!(cache.lookup(start, ip(1)), Lookup::Ask);
    assert!(cache.hold(ip(1), "first", 100));
    assert_eq!(cache.lookup(start, ip(1)), Lookup::Wait);
    assert!(cache.hold(ip(1), "second", 100));
    assert_eq!(cache.learn(start, ip(1), MAC), ["first", "second"]);
    assert_eq!(cache.lookup(start, ip(1)), Lookup::Found(MAC));
    assert!(cache.learn(start, ip(1), MAC).is_empty());
    assert_eq!((cache.waiting_bytes, cache.counts().waiting_dropped), (0, 0));
    assert_eq!(cache.due(start + seconds(1)), []);
    assert_eq!(cache.next_deadline(), None);
}

#[test]
fn a_neighbour_that_does_not_answer_fails_after_three_requests() {
    let (start, mut cache) = (Instant::now(), Neighbors::default());
    assert_eq!(cache.lookup(start, ip(1)), Lookup::Ask);
    assert!(cache.hold(ip(1), 'a', 100));
    assert_eq!(cache.due(start), []);
    for second in 1..=2 {
        assert_eq!(cache.next_deadline(), Some(start + seconds(second)));
        assert_eq!(cache.due(start + seconds(second)), [Due::Ask(ip(1))]);
        assert_eq!(cache.lookup(start + seconds(second), ip(1)), Lookup::Wait);
    }
    let failed = start + seconds(3);
    assert_eq!(cache.due(failed), [Due::Failed(ip(1), ['a'].into())]);
    assert_eq!(cache.lookup(failed, ip(1)), Lookup::Failed);
    assert!(!cache.hold(ip(1), 'b', 100));
    assert_eq!(cache.next_deadline(), None);
    let counts = NeighborCounts { asked: 3, failed: 1, waiting_dropped: 2, evicted: 0 };
    assert_eq!((cache.counts(), cache.waiting_bytes), (counts, 0));
    // A second later it is worth asking again, and it may also speak up by itself.
    assert_eq!(cache.lookup(failed + seconds(1), ip(1)), Lookup::Ask);
    assert!(cache.learn(failed + seconds(1), ip(1), MAC).is_empty());
    assert_eq!(cache.lookup(failed + seconds(1), ip(1)), Lookup::Found(MAC));
}

#[test]
fn what_was_learned_long_ago_is_used_while_it_is_asked_again() {
    let (start, mut cache) = (Instant::now(), Neighbors::<()>::default());
    cache.learn(start, ip(1), MAC);
    assert_eq!(cache.lookup(start + seconds(59), ip(1)), Lookup::Found(MAC));
    assert_eq!(cache.next_deadline(), None);
    let late = start + seconds(60);
    assert_eq!(cache.lookup(late, ip(1)), Lookup::Found(MAC));
    assert_eq!(cache.next_deadline(), Some(late));
    assert_eq!(cache.due(late), [Due::Ask(ip(1))]);
    assert_eq!(cache.lookup(late, ip(1)), Lookup::Found(MAC));
    assert_eq!(cache.due(late), [], "once a second");
    cache.learn(late, ip(1), OTHER);
    assert_eq!(cache.lookup(late + seconds(59), ip(1)), Lookup::Found(OTHER));
    // And gone when three requests were not answered.
    let last = late + seconds(60);
    for second in 0..=3 {
        assert_eq!(cache.lookup(last + seconds(second), ip(1)), Lookup::Found(OTHER));
        let expected =
            if second < 3 { Due::Ask(ip(1)) } else { Due::Failed(ip(1), VecDeque::new()) };
        assert_eq!(cache.due(last + seconds(second)), [expected]);
    }
    assert_eq!(cache.lookup(last + seconds(3), ip(1)), Lookup::Failed);
    assert_eq!(cache.lookup(last + seconds(4), ip(1)), Lookup::Ask);
}

#[test]
fn what_is_told_unasked_updates_only_what_is_there() {
    let (now, mut cache) = (Instant::now(), Neighbors::default());
    assert!(cache.update(now, ip(1), MAC, true).is_empty());
    assert_eq!(cache.lookup(now, ip(1)), Lookup::Ask);
    assert!(cache.hold(ip(1), 'a', 1));
    assert_eq!(cache.update(now, ip(1), MAC, false), ['a']);
    cache.update(now, ip(1), OTHER, false);
    assert_eq!(cache.lookup(now, ip(1)), Lookup::Found(MAC));
    cache.update(now, ip(1), OTHER, true);
    assert_eq!(cache.lookup(now, ip(1)), Lookup::Found(OTHER));
}

#[test]
fn the_oldest_gives_way_when_too_much_waits() {
    let (now, mut cache) = (Instant::now(), Neighbors::default());
    cache.lookup(now, ip(1));
    for n in 0..WAITING_PACKETS + 3 {
        assert!(cache.hold(ip(1), n, 1000));
    }
    assert_eq!(cache.counts().waiting_dropped, 3);
    assert_eq!(cache.learn(now, ip(1), MAC).front(), Some(&3));

    cache.lookup(now, ip(2));
    assert!(cache.hold(ip(2), 0, WAITING_BYTES));
    assert!(cache.hold(ip(2), 1, 1));
    assert_eq!(cache.waiting_bytes, 1);
    assert!(!cache.hold(ip(2), 2, WAITING_BYTES + 1));
    assert!(!cache.hold(ip(2), 2, usize::MAX));
    assert_eq!(cache.waiting_bytes, 1, "what can never be kept displaces nothing");
    assert!(!cache.hold(ip(3), 3, 1), "not looked up");

    // All but one byte of one neighbour's share is left for all others.
    for n in 10..26 {
        cache.lookup(now, ip(n));
        assert_eq!(cache.hold(ip(n), 0, WAITING_BYTES), n < 25, "{n}");
    }
    assert!(cache.hold(ip(25), 0, WAITING_BYTES - 1));
    assert_eq!(cache.waiting_bytes, WAITING_BYTES_ALL);
    assert!(!cache.hold(ip(25), 0, 1));
}

#[test]
fn a_full_cache_forgets_what_nobody_asked_for_first() {
    let (start, mut cache) = (Instant::now(), Neighbors::with_capacity(3));
    assert_eq!(cache.lookup(start, ip(1)), Lookup::Ask);
    assert!(cache.hold(ip(1), 'a', 5));
    assert_eq!(cache.lookup(start + seconds(1), ip(2)), Lookup::Ask);
    for n in 100..200 {
        cache.learn(start + seconds(2), ip(n), MAC);
    }
    assert_eq!(cache.counts().evicted, 99);
    assert_eq!(cache.lookup(start + seconds(2), ip(3)), Lookup::Ask, "in place of a claim");
    assert_eq!(cache.counts().waiting_dropped, 0);
    assert_eq!(cache.lookup(start + seconds(2), ip(4)), Lookup::Ask, "in place of the first");
    assert_eq!((cache.counts().waiting_dropped, cache.waiting_bytes), (1, 0));
    assert_eq!(cache.entries.len(), 3);
}

proptest! {
    #[test]
    fn it_stays_bounded_and_loses_no_count(
        steps in proptest::collection::vec(
            (0_u8..4, 0_u32..12, 0_u64..1500, 0_usize..100_000),
            0..300,
        )
    ) {
        let (mut now, mut cache) = (Instant::now(), Neighbors::with_capacity(8));
        let (mut held, mut returned) = (0, 0);
        for (step, n, pass, len) in steps {
            now += Duration::from_millis(pass);
            match step {
                0 => { cache.lookup(now, ip(n)); }
                1 => { cache.hold(ip(n), (), len); held += 1; }
                2 => returned += cache.learn(now, ip(n), MAC).len(),
                _ => {
                    cache.due(now);
                    prop_assert!(cache.next_deadline().is_none_or(|next| next > now));
                }
            }
            prop_assert!(cache.entries.len() <= 8);
            prop_assert!(cache.waiting_bytes <= WAITING_BYTES_ALL);
            let waiting: usize = cache.entries.values().map(|entry| entry.waiting.len()).sum();
            let bytes: usize = cache.entries.values().map(|entry| entry.waiting_bytes).sum();
            prop_assert_eq!(bytes, cache.waiting_bytes);
            let dropped = usize::try_from(cache.counts().waiting_dropped).unwrap();
            prop_assert_eq!(held, waiting + returned + dropped);
        }
    }
}
