//! What becomes of a token, case by case.

use proptest::prelude::*;

use super::*;

fn token(seed: u8) -> JoinToken {
    JoinToken::mint(&[seed; MINT_BYTES], SpkiPin::of_spki(b"authority"))
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn onprem() -> Purpose {
    Purpose::Cluster("onprem".into())
}

fn text(token: &JoinToken) -> String {
    token.text().expose_secret().to_owned()
}

#[test]
fn a_token_survives_its_text() {
    let minted = token(0xa7);
    let text = text(&minted);
    let read: JoinToken = text.parse().unwrap();
    assert_eq!(text.len(), TEXT_BYTES);
    assert_eq!(
        (read.id(), read.secret_hash(), read.pin()),
        ("ta7a7a7a7a7a7a7a7", minted.secret_hash(), SpkiPin::of_spki(b"authority"))
    );
    assert!(format!(" {text}\n").parse::<JoinToken>().is_ok(), "space around a pasted token is forgiven");
}

#[test]
fn a_damaged_text_is_refused_with_its_reason() {
    let good = text(&token(1));
    let parts: Vec<&str> = good.split('.').collect();
    let with = |at: usize, part: &str| {
        let mut parts = parts.clone();
        parts[at] = part;
        parts.join(".")
    };
    let shorter = |part: &str| part[1..].to_owned();
    let cases = [
        ("empty", String::new(), Error::Prefix),
        ("other prefix", with(0, "Fluvial"), Error::Prefix),
        ("prefix only", "fluvial".into(), Error::Parts { found: 1 }),
        ("cut before the pin", parts[..3].join("."), Error::Parts { found: 3 }),
        ("a part too many", format!("{good}.x"), Error::Parts { found: 5 }),
        ("cut in the pin", good[..good.len() - 1].into(), Error::Length { found: TEXT_BYTES - 1 }),
        ("cut in the secret", with(2, &shorter(parts[2])), Error::Length { found: TEXT_BYTES - 1 }),
        ("too long", format!("{good}0"), Error::Length { found: TEXT_BYTES + 1 }),
        ("id without its letter", with(1, &"0".repeat(17)), Error::Id),
        ("id in upper case", with(1, "tABCDEF0123456789"), Error::Id),
        ("a foreign character in the secret", with(2, &format!("+{}", &parts[2][1..])), Error::Secret),
        ("unused bits set in the secret", with(2, &format!("{}B", &parts[2][..42])), Error::Secret),
        ("pin in upper case", with(3, &"A".repeat(64)), Error::Pin),
    ];
    for (name, damaged, error) in cases {
        assert_eq!(damaged.parse::<JoinToken>().map(|_| ()), Err(error), "{name}");
    }
}

#[test]
fn the_hub_stores_a_hash_from_which_the_secret_does_not_follow() {
    let token = token(1);
    assert_eq!(token.secret_hash(), hex::encode(Sha256::digest([1u8; 32])));
    assert!(!text(&token).contains(&token.secret_hash()));
}

#[test]
fn debug_shows_no_secret() {
    let token = token(1);
    let expected = format!("JoinToken {{ id: \"t0101010101010101\", pin: \"{}\", .. }}", token.pin());
    assert_eq!(format!("{token:?}"), expected);
}

#[test]
fn verdicts_follow_the_table() {
    let good = token(1);
    let other = token(2);
    let minutes = |n: i64| at(n * 60);
    let record = |used: Option<(&str, i64)>| TokenRecord {
        secret_hash: good.secret_hash(),
        purpose: onprem(),
        expires_at: minutes(15),
        used: used.map(|(key, minute)| Use { key_hash: key.into(), at: minutes(minute) }),
    };
    let cloud = Purpose::Cluster("cloud".into());
    let other_purpose =
        |requested: &Purpose| Err(Refusal::OtherPurpose { allowed: onprem(), requested: requested.clone() });
    let expired = Err(Refusal::Expired { at: minutes(15) });
    let used = |minute| Err(Refusal::Used { at: minutes(minute) });
    let just_after = minutes(15).checked_add(SignedDuration::from_nanos(1)).unwrap();

    let cases = [
        ("first use", &good, record(None), "k", onprem(), minutes(1), Ok(Verdict::Consume)),
        ("last moment", &good, record(None), "k", onprem(), at(15 * 60 - 1), Ok(Verdict::Consume)),
        ("expired to the second", &good, record(None), "k", onprem(), minutes(15), expired.clone()),
        ("long expired", &good, record(None), "k", onprem(), minutes(1500), expired),
        ("another secret", &other, record(None), "k", onprem(), minutes(1), Err(Refusal::WrongSecret)),
        ("another secret, expired", &other, record(None), "k", onprem(), minutes(99), Err(Refusal::WrongSecret)),
        ("another secret, used", &other, record(Some(("k", 1))), "k", onprem(), minutes(2), Err(Refusal::WrongSecret)),
        ("another cluster", &good, record(None), "k", cloud.clone(), minutes(1), other_purpose(&cloud)),
        ("a hub", &good, record(None), "k", Purpose::Hub, minutes(1), other_purpose(&Purpose::Hub)),
        ("reply lost", &good, record(Some(("k", 1))), "k", onprem(), minutes(2), Ok(Verdict::Reissue)),
        ("reply lost, ten minutes", &good, record(Some(("k", 5))), "k", onprem(), minutes(15), Ok(Verdict::Reissue)),
        ("reply lost, expired since", &good, record(Some(("k", 14))), "k", onprem(), minutes(20), Ok(Verdict::Reissue)),
        ("reply lost too long ago", &good, record(Some(("k", 5))), "k", onprem(), just_after, used(5)),
        ("used by another key", &good, record(Some(("k", 1))), "other", onprem(), minutes(1), used(1)),
        (
            "reissue for another cluster",
            &good,
            record(Some(("k", 1))),
            "k",
            cloud.clone(),
            minutes(2),
            other_purpose(&cloud),
        ),
    ];
    for (name, presented, record, key, requested, now, expected) in cases {
        assert_eq!(verdict(&record, presented, key, &requested, now), expected, "{name}");
    }
}

#[test]
fn a_hub_token_admits_hubs_and_no_cluster() {
    let token = token(1);
    let record =
        TokenRecord { secret_hash: token.secret_hash(), purpose: Purpose::Hub, expires_at: at(60), used: None };
    assert_eq!(verdict(&record, &token, "k", &Purpose::Hub, at(0)), Ok(Verdict::Consume));
    assert_eq!(
        verdict(&record, &token, "k", &onprem(), at(0)),
        Err(Refusal::OtherPurpose { allowed: Purpose::Hub, requested: onprem() })
    );
}

#[test]
fn refusals_help_and_hold_nothing_of_the_secret() {
    let cases = [
        (Refusal::WrongSecret, "join token is not known to this hub; create a new one with `fluvial token create`"),
        (
            Refusal::OtherPurpose { allowed: onprem(), requested: Purpose::Hub },
            "join token is for cluster \"onprem\", not for a hub; create one with `fluvial token create` for it",
        ),
        (
            Refusal::Used { at: at(0) },
            "join token was used at 1970-01-01T00:00:00Z; each works once, create a new one with `fluvial token create`",
        ),
        (
            Refusal::Expired { at: at(0) },
            "join token expired at 1970-01-01T00:00:00Z; create a new one with `fluvial token create`",
        ),
    ];
    for (refusal, expected) in cases {
        assert_eq!(refusal.to_string(), expected);
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(fluvial\\.)?\\PC*") {
        let _ = text.parse::<JoinToken>();
    }

    #[test]
    fn every_minted_token_is_read_back(random in any::<[u8; 32]>(), id in any::<[u8; 8]>()) {
        let bytes: [u8; MINT_BYTES] = [&id[..], &random[..]].concat().try_into().unwrap();
        let minted = JoinToken::mint(&bytes, SpkiPin::of_spki(&random));
        let read: JoinToken = text(&minted).parse().unwrap();
        prop_assert_eq!(text(&read), text(&minted));
    }

    #[test]
    fn a_token_with_any_one_character_changed_is_never_accepted(at_byte in 0..TEXT_BYTES, with in "[ -~]") {
        let good = token(1);
        let mut changed = text(&good);
        changed.replace_range(at_byte..=at_byte, &with);
        prop_assume!(changed != text(&good));
        let record = TokenRecord { secret_hash: good.secret_hash(), purpose: onprem(), expires_at: at(60), used: None };
        if let Ok(read) = changed.parse::<JoinToken>() {
            let accepted = verdict(&record, &read, "k", &onprem(), at(0)).is_ok();
            // The hub finds the record by id and the bearer checks the pin; the secret is the verdict's part.
            prop_assert!(!accepted || read.id() != good.id() || read.pin() != good.pin());
        }
    }
}
