//! The trail against every change that a forger could make.

use proptest::prelude::*;

use super::*;

fn entry(number: u64) -> Entry {
    Entry {
        time: Timestamp::from_second(1_800_000_000 + i64::try_from(number).unwrap()).unwrap(),
        user: "user/ann".into(),
        groups: vec!["team".into()],
        address: "10.0.0.1:5".into(),
        request: format!("{number:x}"),
        verb: "create".into(),
        api_group: "data.fluid.io".into(),
        resource: "datasets".into(),
        namespace: "default".into(),
        name: format!("d{number}"),
        code: 201,
        count: 1,
        message: String::new(),
    }
}

/// A chain of so many records.
fn chain(length: u64) -> Vec<Record> {
    let mut head = Head::START;
    (1..=length)
        .map(|number| {
            let record = Record::after(&head, number, entry(number));
            head = record.head();
            record
        })
        .collect()
}

fn verify(records: &[Record], noted: Option<Head>) -> Result<Head, Fault> {
    let mut verifier = Verifier::new(noted);
    records.iter().try_for_each(|record| verifier.next(record))?;
    verifier.end()
}

#[test]
fn a_whole_trail_is_whole() {
    let records = chain(5);
    assert_eq!(verify(&records, None), Ok(records[4].head()));
    assert_eq!(verify(&[], None), Ok(Head::START));
    for record in &records {
        assert_eq!(verify(&records, Some(record.head())), Ok(records[4].head()));
    }
    let head = records[4].head();
    assert_eq!(head.to_string().parse(), Ok(head));
    for wrong in ["", "5", "5:", "x:00", &format!("5:{}", "0".repeat(63))] {
        assert!(wrong.parse::<Head>().is_err(), "{wrong}");
    }
}

/// Every way in which one field of a record can be another.
fn changes() -> Vec<fn(&mut Record)> {
    vec![
        |r| r.revision += 1,
        |r| r.entry.time = Timestamp::from_second(1).unwrap(),
        |r| r.entry.user.push('x'),
        |r| r.entry.groups.clear(),
        |r| r.entry.groups.push("system:masters".into()),
        |r| r.entry.address.clear(),
        |r| r.entry.request.clear(),
        |r| r.entry.verb = "get".into(),
        |r| r.entry.api_group.clear(),
        |r| r.entry.resource = "secrets".into(),
        |r| r.entry.namespace.push('x'),
        |r| r.entry.name.push('x'),
        // What moves from one text to its neighbour is not the same either.
        |r| r.entry.namespace.push_str(&std::mem::take(&mut r.entry.name)),
        |r| r.entry.code = 200,
        |r| r.entry.count = 2,
        |r| r.entry.message.push('x'),
        |r| r.hash[31] ^= 1,
    ]
}

#[test]
fn a_changed_record_is_found_and_named() {
    for (number, change) in changes().into_iter().enumerate() {
        let mut records = chain(5);
        change(&mut records[2]);
        assert_eq!(verify(&records, None), Err(Fault::Changed { sequence: 3 }), "change {number}");
        // A forger who hashes anew is found by the next record, and at the end by the head that somebody noted.
        records[2].hash = records[2].computed();
        if records[2] != chain(5)[2] {
            assert_eq!(verify(&records, None), Err(Fault::Broken { sequence: 4 }), "change {number}");
        }
    }
    let noted = chain(5)[4].head();
    let mut last = chain(5);
    last[4].entry.user = "user/bob".into();
    last[4].hash = last[4].computed();
    assert_eq!(verify(&last, None), Ok(last[4].head()));
    assert_eq!(verify(&last, Some(noted)), Err(Fault::OtherHead { head: 5 }));
}

#[test]
fn what_is_missing_put_in_or_in_another_order_is_found() {
    let records = chain(5);
    let mut removed = records.clone();
    removed.remove(2);
    assert_eq!(verify(&removed, None), Err(Fault::Gap { last: 2, found: 4 }));
    assert!(Fault::Gap { last: 2, found: 6 }.to_string().contains("3 to 5 are missing"));
    let mut swapped = records.clone();
    swapped.swap(1, 2);
    assert_eq!(verify(&swapped, None), Err(Fault::Gap { last: 1, found: 3 }));
    // With the numbers put right the hashes are wrong.
    (swapped[1].sequence, swapped[2].sequence) = (2, 3);
    assert_eq!(verify(&swapped, None), Err(Fault::Broken { sequence: 2 }));
    let mut doubled = records.clone();
    doubled.insert(3, records[2].clone());
    assert_eq!(verify(&doubled, None), Err(Fault::Gap { last: 3, found: 3 }));
    // The end can only be missed by who knows that there was one.
    assert_eq!(verify(&records[..3], None), Ok(records[2].head()));
    assert_eq!(verify(&records[..3], Some(records[4].head())), Err(Fault::Cut { last: 3, head: 5 }));
    assert_eq!(verify(&records[2..], None), Err(Fault::NoCheckpoint { first: 3 }));
}

#[test]
fn records_that_were_let_go_are_vouched_for_by_a_checkpoint() {
    let mut records = chain(5);
    let last = records[4].head();
    records.push(Record::after(&last, 5, Record::checkpoint(&records[1].head(), Timestamp::UNIX_EPOCH)));
    assert_eq!(verify(&records[2..], None), Ok(records[5].head()));
    // More than it says is gone.
    assert_eq!(verify(&records[3..], None), Err(Fault::NoCheckpoint { first: 4 }));
    assert_eq!(verify(&records[2..], Some(records[1].head())), Ok(records[5].head()));
    let old = Some(records[0].head());
    assert_eq!(verify(&records[2..], old), Err(Fault::HeadTooOld { head: 1, first: 3 }));
}

#[test]
fn texts_are_cut_at_the_end_of_a_character() {
    let long = Entry { name: "é".repeat(200), count: 0, ..entry(1) }.bounded();
    assert_eq!((long.name.len(), long.count), (256, 1));
    let long = Entry { name: format!("x{}", "é".repeat(200)), ..entry(1) }.bounded();
    assert_eq!(long.name.len(), 255);
}

#[test]
fn a_flood_of_refusals_waits_as_a_few_entries_that_count_all_of_them() {
    let mut waiting = Waiting::default();
    let stranger = |address: String, name: String| Entry { user: String::new(), code: 401, address, name, ..entry(1) };
    for number in 0..1000 {
        waiting.put(stranger(format!("10.0.0.1:{number}"), format!("d{number}")));
    }
    assert_eq!(waiting.len(), (0, 1), "one address is one caller");
    for number in 0..10_000 {
        waiting.put(stranger(format!("10.1.{}.{}:1", number / 256, number % 256), "d".into()));
        waiting.put(Entry { user: format!("user/u{}", number % 500), code: 403, ..entry(number) });
    }
    let (known, strangers) = waiting.len();
    assert!(known <= KNOWN * 2 + 1 && strangers <= STRANGERS * 2 + 1, "{known} {strangers}");
    let some = waiting.take(3, 2);
    assert_eq!(some.len(), 5);
    let rest = waiting.take(usize::MAX, usize::MAX);
    assert!(waiting.is_empty());
    assert_eq!(some.iter().chain(&rest).map(|entry| entry.count).sum::<u64>(), 21_000);
}

proptest! {
    /// No two records have the same canonical bytes.
    #[test]
    fn different_records_have_different_bytes(texts in prop::collection::vec("[ab]{0,2}", 10), other in prop::collection::vec("[ab]{0,2}", 10)) {
        let record = |texts: &[String]| {
            let entry = Entry {
                user: texts[0].clone(), groups: texts[1..3].to_vec(), address: texts[3].clone(), request: texts[4].clone(),
                verb: texts[5].clone(), api_group: texts[6].clone(), resource: texts[7].clone(), namespace: texts[8].clone(),
                name: texts[9].clone(), ..Entry::default()
            };
            Record::after(&Head::START, 1, entry)
        };
        let (one, two) = (record(&texts), record(&other));
        prop_assert_eq!(texts == other, one.canonical() == two.canonical());
    }
}
