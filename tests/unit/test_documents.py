"""Word documents as data, hostile ones too, and passages of documents."""

import random
import zipfile

import docx
import pytest
from docx.oxml import parse_xml

from tests.unit.test_files import parts_of, repacked
from workbench.data import editing
from workbench.data.documents import document_texts, passages
from workbench.data.readers import read_file
from workbench.data.registry import read_registry
from workbench.errors import UserError

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def document(path, *paragraphs: str, xml: str = ""):
    """A document of some paragraphs, and of others that are given as XML."""
    made = docx.Document()
    for text in paragraphs:
        made.add_paragraph(text)
    if xml:
        for child in parse_xml(f"<w:body {W}>{xml}</w:body>"):
            made.element.body.insert(len(made.element.body) - 1, child)
    made.save(path)
    return path


def test_paragraphs_and_tables_come_in_order(tmp_path):
    made = docx.Document()
    made.add_heading("标题")
    made.add_paragraph("")
    made.add_paragraph("one\ttwo\nthree")
    table = made.add_table(2, 2)
    for cell, text in zip(table._cells, ("a", "b\nc", "", "d"), strict=True):
        cell.text = text
    table.cell(1, 0).add_table(1, 1).cell(0, 0).text = "within"
    made.add_table(1, 2)
    made.add_paragraph("last")
    made.save(tmp_path / "d.docx")
    assert list(document_texts(tmp_path / "d.docx")) == ["标题", "one\ttwo\nthree", "a | b c", "within | d", "last"]
    rows = list(read_file(tmp_path / "d.docx"))
    assert rows[0].place == "d.docx:1" and rows[-1].row() == {"text": "last"}


def test_what_was_deleted_is_left_out_and_what_was_inserted_is_read(tmp_path):
    xml = (
        "<w:p><w:pPr><w:tabs><w:tab w:val='left' w:pos='1'/></w:tabs></w:pPr><w:r><w:t>kept </w:t></w:r>"
        "<w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del>"
        "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom><w:hyperlink><w:r><w:t> link</w:t></w:r></w:hyperlink></w:p>"
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        "<w:p><w:r><w:t>beside</w:t><w:pict><w:txbxContent><w:p><w:r><w:t>boxed</w:t></w:r></w:p></w:txbxContent></w:pict></w:r></w:p>"
    )
    texts = list(document_texts(document(tmp_path / "d.docx", xml=xml)))
    assert texts == ["kept new link", "in a control", "beside\nboxed"]


def test_a_document_is_uploaded_and_edited(workspace, tmp_path):
    name, layout, _ = editing.add_file(workspace, document(tmp_path / "d.docx", "one", "two"), "d.docx")
    assert layout == "text"
    editing.change_rows(workspace, name, {1: ('{"text": "one"}', '{"text": "ONE"}')})
    info = read_registry(workspace.uploads, workspace)[name]
    assert [raw.row()["text"] for raw in read_file(info.file)] == ["ONE", "two"] and info.file.suffix == ".jsonl"


def test_what_is_no_document_is_one_sentence(tmp_path):
    path = tmp_path / "d.docx"
    for content in (b"", b"some text", b"PK\x03\x04 not really", b"\xd0\xcf\x11\xe0 an old .doc"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"no Word document of the kind \.docx"):
            list(document_texts(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match="cannot be read as a Word document"):
        list(document_texts(path))
    (tmp_path / "d.docx.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match="gz"):
        list(read_file(tmp_path / "d.docx.gz"))


def test_a_document_with_broken_parts_is_one_sentence_at_most(tmp_path):
    path = document(tmp_path / "d.docx", *(f"paragraph {i}" for i in range(20)))
    parts, generator = parts_of(path), random.Random(1)
    for _ in range(80):
        name = generator.choice(["word/document.xml", "[Content_Types].xml", "_rels/.rels", *sorted(parts)])
        data = bytearray(parts[name])
        for _ in range(3):
            at = generator.randrange(len(data))
            data[at : at + generator.randint(0, 6)] = bytes(generator.choices(b'<>&"0169az/ \x00\xff', k=3))
        repacked(path, parts, {name: bytes(data)})
        try:
            list(document_texts(path))
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) not in str(error)


def hostile(path, head: str, inner: str):
    """A document whose text is given with what stands before it."""
    document(path, "x")
    body = f'<?xml version="1.0"?>{head}<w:document {W}><w:body>{inner}</w:body></w:document>'
    repacked(path, parts_of(path), {"word/document.xml": body.encode()})
    return path


def test_entities_neither_grow_nor_read_files(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    entities = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    for head in (
        f'<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">{entities}]>',
        f'<!DOCTYPE l [<!ENTITY j SYSTEM "file://{secret}">]>',
    ):
        path = hostile(tmp_path / "d.docx", head, "<w:p><w:r><w:t>&j;</w:t></w:r></w:p>")
        try:
            texts = list(document_texts(path))
        except UserError:
            texts = []
        assert len("".join(texts)) < 100 and "a secret" not in "".join(texts)


def test_what_is_nested_deep_or_unpacks_to_much_is_refused(tmp_path):
    deep = "<w:sdt>" * 5000 + "</w:sdt>" * 5000
    with pytest.raises(UserError, match="cannot be read as a Word document"):
        list(document_texts(hostile(tmp_path / "d.docx", "", deep)))
    path = document(tmp_path / "d.docx", "x")
    for name, size in (("word/media/zeros", 300), ("word/more.xml", 70)):
        parts = parts_of(document(path, "x"))
        repacked(path, parts, {name: bytes(size << 20)})
        assert path.stat().st_size < 1 << 20
        with pytest.raises(UserError, match=f"unpacks to {size} MiB"):
            list(document_texts(path))


def test_passages_are_whole_paragraphs_then_sentences_then_pieces():
    assert list(passages(["a" * 30, "b" * 30, "c" * 30], 65)) == ["a" * 30 + "\n" + "b" * 30, "c" * 30]
    assert list(passages(["One is one. Two is two! 三就是三。四就是四。"], 14)) == [
        "One is one.",
        "Two is two!",
        "三就是三。\n四就是四。",
    ]
    assert list(passages(["x" * 25], 10)) == ["x" * 10 + "", "x" * 10, "x" * 5]
    assert list(passages([], 10)) == []
