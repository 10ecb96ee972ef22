PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fuzz browser-test page lint docs wheel clean

demo: .venv/.installed
	./train_QuarkGluon.sh ParT kin --demo

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The random files and options of `make test`, but other ones at each run, and 80 times as many.
fuzz: .venv/.installed
	JETZOO_FUZZ=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/test_hostile.py

# The pages in a real browser: a Chromium of the system (CHROMIUM names another), or Playwright's own.
browser-test: .venv/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/test_browser.py

# The page of `jetzoo explore`, from its sources, with Node.js; the result is committed.
page:
	cd src/jetzoo/interpret/page && npm ci --no-audit --no-fund --silent && npm run --silent build

PLATFORM = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_platform().replace("-", "_"))')

# A wheel for machines of this architecture, with all kernels compiled; they then need no compiler.
wheel: .venv/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt build wheel
	$(BIN)/python -m jetzoo.native.compilation
	$(BIN)/python -m build --wheel --outdir dist
	rm -r src/jetzoo/native/compiled
	$(BIN)/python -m wheel tags --remove --platform-tag $(PLATFORM) dist/jetzoo-*-none-any.whl

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck -x *.sh scripts/*.sh .ci/run

# The site, with its tutorial run on the embedded jets. A warning, such as a broken link, is an error.
docs: .venv/.docs
	$(BIN)/python -m sphinx -W --keep-going -n docs docs/_build/html
	@echo "The site is docs/_build/html/index.html."

.venv/.docs: .venv/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

# The constraints file pins torch and everything else that was tested together.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "jetzoo needs Python 3.11 or newer; try: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[simulate,interpret,export,remote,scale,test]'
	@touch $@

clean:
	rm -rf .venv training build dist docs/_build src/*.egg-info src/jetzoo/native/compiled
