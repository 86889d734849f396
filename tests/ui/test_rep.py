from tests.ui.test_open_page import re, pytest, expect, client, source, models
import shutil
@pytest.mark.parametrize("i", range(3))
def test_rep(server, open_page, models, tmp_path, i):
    for f in models.iterdir(): shutil.copy(f, tmp_path)
    page = open_page(server.url)
    source(page, "From a folder")
    folder = page.get_by_role("textbox", name="Folder with models")
    folder.fill(str(tmp_path))
    folder.press("Enter")
    expect(page.get_by_text("3 model files")).to_be_visible()
    page.wait_for_timeout(4000)
    page.get_by_role("combobox", name=re.compile("model file")).click()
    page.get_by_role("option", name=re.compile("unsafe.pth")).click()
    page.get_by_role("button", name="Inspect").click()
    page.wait_for_timeout(6000)
    jobs=[(j.request.file if hasattr(j.request,'file') else str(j.request)) for j in client.list_jobs(server.store) if str(tmp_path) in str(j.request)]
    val=page.get_by_role("combobox", name=re.compile("model file")).input_value()
    print("REP", i, val, [str(j)[-60:] for j in jobs])
    assert "unsafe" in val and len(jobs)==1 and "unsafe" in str(jobs[0])
