"""`refusaldir report`: the page's path on stdout, mistakes as sentences."""

import simulated

from refusaldir.report.document import write_json


def test_it_says_where_the_page_is(run, tmp_path):
    write_json(simulated.document(), tmp_path / "layers.json")
    done = run("report", tmp_path)
    assert done.code == 0, done.err
    assert done.out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!doctype html>")
    done = run("report", "layers.json", "--out", "sub/other.html")
    assert done.code == 0, done.err
    assert (tmp_path / "sub" / "other.html").exists()


def test_an_empty_folder_is_the_users_mistake(run, tmp_path):
    done = run("report", tmp_path)
    assert done.code == 2
    assert done.sentence.startswith("Error: There is nothing to report here")
