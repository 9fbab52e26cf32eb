"""Secrets neither reach config.json nor the terminal; what is none stays as it is, bit for bit."""

import inspect
import json
import string

import pytest
from conftest import ROOT
from hypothesis import assume, given
from hypothesis import strategies as st
from test_config import shipped

from filip_jax.cli import main
from filip_jax.config import load_config
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import SOURCES
from filip_jax.errors import UserError, one_line
from filip_jax.paths import flatten
from filip_jax.redact import HIDDEN, redact, redacted
from filip_jax.saved_config import FORMAT, check_same_run, read_config, save_config

LETTERS = string.ascii_letters + string.digits


def of(alphabet, least, most):
    return st.text(alphabet, min_size=least, max_size=most)


words = of(LETTERS, 12, 40)
FORMS = {  # a text that holds a secret, and the secret
    "hugging face": of(LETTERS, 34, 40).map(lambda x: f"hf_{x}"),
    "github": st.tuples(st.sampled_from(["ghp_", "gho_", "ghs_", "github_pat_"]), of(LETTERS, 36, 60)).map("".join),
    "gitlab": of(LETTERS, 20, 30).map(lambda x: f"glpat-{x}"),
    "aws": st.tuples(st.sampled_from(["AKIA", "ASIA"]), of(string.ascii_uppercase + string.digits, 16, 16)).map(
        "".join
    ),
    "google": of(LETTERS + "-_", 35, 35).map(lambda x: f"AIza{x}"),
    "jwt": st.tuples(words, words, words).map(lambda x: f"eyJ{x[0]}.eyJ{x[1]}.{x[2]}"),
    "openai": of(LETTERS, 40, 50).map(lambda x: f"sk-{x}"),
    "slack": words.map(lambda x: f"xoxb-{x}"),
}
AROUND = {  # how a secret that has no form of its own is known
    "user": "s3://user:{}@host/bucket/a.tar",
    "user alone": "gs://{}@host/a",
    "signature": "https://host/a.jpg?X-Amz-Expires=60&X-Amz-Signature={}&x=1",
    "goog": "https://host/a.jpg?X-Goog-Signature={}",
    "sas": "https://host/a.jpg?sv=2020&sig={}#part",
    "query token": "https://host/a.jpg?access_token={}",
    "override": "--config.source.token={} --config.seed=1",
    "quoted": "wrong: api_key='{}'; next",
    "json": '{{"aws_secret_access_key": "{}"}}',
    "difference": "source.password: 'x' -> '{}'",
}
KEYS = ("token", "hf_token", "HF_TOKEN", "accessToken", "secret", "client_secret", "password", "db_passwd", "api_key", "apiKey", "credentials",
        "aws_access_key_id", "aws_secret_access_key", "secret_key", "account_key", "wandb_key", "google_credential")  # fmt: skip
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="=:?&@"), max_size=40)


@pytest.mark.parametrize("form", FORMS)
@given(
    data=st.data(),
    before=st.sampled_from(["", "a ", "'", "/data/", "x=", "("]),
    after=st.sampled_from(["", " b", "'", "/a", ")"]),
)
def test_forms_of_tokens_are_hidden_wherever_they_stand(form, data, before, after):
    secret = data.draw(FORMS[form])
    for text in (
        redact(f"{before}{secret}{after}"),
        json.dumps(redacted({"a": [{"b": f"{before}{secret}{after}"}], secret: 1})),
    ):
        assert secret not in text and HIDDEN in text
    assert redact(f"{before}{secret}{after}").startswith(before)


@pytest.mark.parametrize("place", AROUND)
@given(secret=words)
def test_secrets_are_hidden_by_what_stands_around_them(place, secret):
    assume(secret not in AROUND[place])
    text = redact(AROUND[place].format(secret))
    assert secret not in text and HIDDEN in text and redact(text) == text
    for rest in ("host", "next", "--config.seed=1", "#part", "&x=1", "/a"):
        assert (rest in text) == (rest in AROUND[place])


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("secret", ["s3cr3t/Pa55-w0rd", 471_100_815])
def test_what_a_key_calls_secret_never_reaches_config_json(key, secret, tmp_path, demo_config):
    workdir = tmp_path
    source = {"name": "folder", "path": "/data", key: secret, "more": ({key: {"deep": [secret, "x"]}},)}
    config = demo_config | {"source": source}
    save_config(workdir, config)
    text = (workdir / "config.json").read_text()
    assert str(secret) not in text and text.count(HIDDEN) == 3
    check_same_run(workdir, config)  # both redacted: a resumed run is the same run
    with pytest.raises(UserError, match="batch_size: 128 -> 64") as error:
        check_same_run(workdir, config | {"batch_size": 64, "source": source | {key: f"other{secret}"}})
    assert str(secret) not in str(error.value)


def test_a_key_of_weights_and_biases_is_known_by_the_name_beside_it():
    key = "0123456789abcdef0123456789abcdef01234567"
    assert key not in json.dumps(redacted({"wandb": key, "wandb_api_key": key}))
    assert key not in redact(f"WANDB_API_KEY={key}") + redact(f"wandb: {key}") + redact(f"--config.wandb='{key}'")
    assert redact(f"commit {key}") == f"commit {key}"  # a hash


@pytest.mark.parametrize("name", list(shipped()))
def test_shipped_configs_are_unchanged_bit_for_bit(name, tmp_path):
    config = load_config(str(ROOT / "configs" / name))
    assert redacted(config) == config
    save_config(tmp_path, config)
    assert (tmp_path / "config.json").read_text() == json.dumps({"format": FORMAT} | config, indent=2) + "\n"
    assert read_config(tmp_path) == json.loads(json.dumps(config))
    text = " ".join(
        f"{path}={value!r}, {path.replace('/', '.')}: {value!r} -> {value!r};"
        for path, value in flatten(config).items()
    )
    assert redact(text) == text  # nor are messages about our own keys, class_tokens and keep_tokens among them


def test_no_option_of_a_source_is_called_secret():
    for kind in SOURCES.values():
        options = dict.fromkeys(inspect.signature(kind).parameters, "x")
        assert redacted(options) == options


@given(st.recursive(st.one_of(plain, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()), lambda x: st.one_of(
    st.lists(x, max_size=3), st.lists(x, max_size=3).map(tuple), st.dictionaries(of("abcxyz_", 1, 8), x, max_size=3)), max_leaves=9))  # fmt: skip
def test_whatever_has_no_secret_is_unchanged(value):
    result = redacted(value)
    assert result == value and repr(result) == repr(value)


@given(st.text(max_size=200))
def test_redacting_twice_changes_nothing_more(text):
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("text", [
    "gs://bucket/a@b/{0..9}.tar", "s3://bucket:9000/a", "tokenizer.path='words.model'", "model.image.class_tokens=0, but", "BOS, a token: EOS",
    "keep_tokens=0.25", "/data/hf_datasets/sk-translations", "{'token_embedding': 3}", "a secret garden", "key='000012'", "eyJ is no token",
])  # fmt: skip
def test_texts_that_only_look_so(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "text", ["a." * 50_000, "key" * 50_000, "eyJ-" * 20_000, "token='" * 20_000, "?x-amz-" * 20_000, "sk-" * 50_000]
)
def test_long_texts_take_no_square_of_their_length(text):
    redact(text)  # seconds, or for ever: pytest says which is slow


COMMANDS = [
    ["train", "--config=CONFIG", "--workdir=W", "--config.optimizer.b1=SECRET"],
    ["train", "--config=CONFIG", "--workdir=W", "--config.source.tokn=SECRET"],
    ["train", "--config=CONFIG", "--workdir=W", "--config.objectives.filip.dtype=SECRET", "--config.seed[0]=1"],
    ["train", "--config=CONFIG", "--workdir=W", "--config.objectives.filip.dtype=SECRET"],
    ["train", "--config=CONFIG", "--workdir=W", "--SECRET=1"],
    ["train", "--config=SECRET", "--workdir=W"],
    ["train", "--config=CONFIG", "--workdir=W", "--source", "folder", "path=SECRET"],
    ["train", "--config=CONFIG", "--workdir=W", "--source", "folder", "SECRET"],
    ["train", "--config=CONFIG", "--workdir=W", "--source", "folder", "path=x", "SECRET=1"],
    ["data", "index", "webdataset", "path=s3x://SECRET@host/a.tar"],
    ["eval", "--workdir=SECRET"],
    ["align", "--workdir=W", "--image=SECRET", "--text=a", "--output=a.png"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:60])
def test_no_command_prints_a_secret(command, tmp_path, capsys):
    secret = "hf_" + "Ab0" * 12
    words = [word.replace("SECRET", secret).replace("CONFIG", str(ROOT / "configs/demo.py")) for word in command]
    assert main([word.replace("=W", f"={tmp_path}/run") for word in words]) == 2
    said = capsys.readouterr()
    assert secret not in said.out + said.err and said.err.count("\n") == 1
    assert HIDDEN in said.err or "unknown config key" in said.err


def test_messages_are_one_printable_line_without_secrets():
    secret = "ghp_" + "x1" * 18
    for error in (UserError(f"a\n\x1b[2J\ud800 {secret}"), BadRecord(f"a\n\x1b[2J\ud800 {secret}")):
        assert str(error) == rf"a \x1b[2J\ud800 {HIDDEN}"
    assert len(one_line("x" * 10**6)) < 5000 and one_line("ä 狗 🦜") == "ä 狗 🦜"
