//! Users whom somebody else knows: OpenID Connect tokens in kubeconfigs, with keys that change and a provider that goes away.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;

use fluvial_tests::federation::{Api, DEADLINE, Up};
use fluvial_tests::issuer::{Issuer, unix_now};
use fluvial_tests::wait::wait_for;
use serde_json::{Value, json};

/// The administrator's kubeconfig with a bearer token in place of his certificate.
fn bearer(up: &Up, token: &str) -> Api {
    let text = fs::read_to_string(&up.api.kubeconfig).unwrap();
    let mut config: Value = serde_yaml_ng::from_str(&text).unwrap();
    config["users"][0]["user"] = json!({ "token": token });
    let kubeconfig = up.folder().join("bearer.kubeconfig");
    fs::write(&kubeconfig, config.to_string()).unwrap();
    Api { kubeconfig }
}

#[test]
fn a_token_of_an_identity_provider_opens_what_its_users_roles_say() {
    let up = Up::start(1, &["a"]);
    let mut issuer = Issuer::start(&up.folder().join("issuer"));
    let claims = |changes: Value| {
        let mut claims = json!({
            "iss": issuer.url, "aud": "fluvial", "sub": "ann", "groups": ["vision"], "exp": unix_now() + 600,
        });
        for (claim, value) in changes.as_object().unwrap() {
            claims[claim] = value.clone();
        }
        claims
    };
    let whole = claims(json!({}));
    let me = |token: &str| bearer(&up, token).kubectl(&["auth", "whoami"]);
    assert!(me(&issuer.token("one", &whole)).is_err(), "nobody vouches for it yet");

    let ca = issuer.ca.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let provider = format!(
        "apiVersion: fluvial.io/v1alpha1\nkind: IdentityProvider\nmetadata: {{name: corp}}\nspec:\n  issuer: {}\n  \
         audiences: [fluvial]\n  caBundle: |\n{ca}",
        issuer.url
    );
    up.api.apply(&provider).unwrap();
    wait_for(DEADLINE, "the provider to count", || me(&issuer.token("one", &whole)));
    let said = me(&issuer.token("one", &whole)).unwrap();
    assert!(said.contains("corp:ann") && said.contains("corp:vision"), "{said}");

    // Rights are roles, for the group that the provider says.
    let ann = || bearer(&up, &issuer.token("one", &whole));
    assert!(ann().kubectl(&["get", "datasets"]).unwrap_err().contains("corp:ann"));
    up.api
        .kubectl(&["create", "rolebinding", "r", "--clusterrole=view", "--group=corp:vision", "-n", "default"])
        .unwrap();
    wait_for(DEADLINE, "the role to be in force", || ann().kubectl(&["get", "datasets"]));

    // What is not for us, over, or changed.
    for (changes, what) in [
        (json!({ "aud": "elsewhere" }), "another audience"),
        (json!({ "exp": unix_now() - 60 }), "over"),
        (json!({ "nbf": unix_now() + 600 }), "not yet"),
        (json!({ "iss": "https://other.invalid" }), "another issuer"),
    ] {
        assert!(me(&issuer.token("one", &claims(changes))).is_err(), "{what}");
    }
    let token = issuer.token("one", &whole);
    let (head, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = head.split_once('.').unwrap();
    let other = issuer.token("one", &claims(json!({ "sub": "bob" })));
    let body = other.split('.').nth(1).unwrap();
    assert!(me(&format!("{header}.{body}.{signature}")).is_err(), "another body under the signature");
    let unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    assert!(me(&format!("{unsigned}.{body}.")).is_err(), "no signature");

    // A new key counts once it is published; who is known stays known while the provider is away.
    issuer.make_key("two");
    assert!(me(&issuer.token("two", &whole)).is_err(), "not published");
    issuer.publish(&["one", "two"]);
    wait_for(DEADLINE, "the new key to count", || me(&issuer.token("two", &whole)));
    issuer.close();
    me(&issuer.token("two", &whole)).unwrap();
    issuer.open();

    // Without the provider, nothing.
    up.api.kubectl(&["delete", "identityproviders", "corp"]).unwrap();
    wait_for(DEADLINE, "the token to be worthless", || match me(&token) {
        Err(_) => Ok(()),
        Ok(said) => Err(said),
    });
}
