// Jets from a CSV file: a header with names, then a row for each particle. Rows that follow one
// another with the same number in the column `jet` are a jet; a row whose particle columns are
// empty is a jet without particles. Numbers of the jet, such as jet_pt, stand in each of its rows.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "jetzoo.hpp"

struct CsvJet {
    long number;
    int64_t size = 0;
    std::vector<std::vector<float>> columns;  // of each variable of the network

    std::vector<const float*> pointers() const {
        std::vector<const float*> found;
        for (const auto& column : columns) found.push_back(column.data());
        return found;
    }
};

inline std::vector<std::string> split(const std::string& line) {
    std::vector<std::string> cells(1);
    for (char c : line) {
        if (c == ',')
            cells.emplace_back();
        else if (c != '\r' && c != ' ')
            cells.back() += c;
    }
    return cells;
}

inline float number_in(const std::string& cell, const std::string& where) {
    char* end = nullptr;
    const float value = std::strtof(cell.c_str(), &end);
    if (cell.empty() || *end) throw std::runtime_error(where + ": '" + cell + "' is no number");
    return value;
}

inline std::vector<CsvJet> read_jets(const std::string& path, const jetzoo::Network& network) {
    std::ifstream file(path);
    std::string line;
    if (!std::getline(file, line)) throw std::runtime_error(path + " cannot be read, or is empty");
    const std::vector<std::string> header = split(line), names = network.variables();
    const auto column_of = [&](const std::string& name) -> size_t {
        const auto found = std::find(header.begin(), header.end(), name);
        if (found == header.end()) throw std::runtime_error(path + " has no column " + name);
        return found - header.begin();
    };
    const size_t jet_column = column_of("jet");
    std::vector<size_t> columns;
    for (const std::string& name : names) columns.push_back(column_of(name));
    std::vector<CsvJet> jets;
    for (long row = 2; std::getline(file, line); row++) {
        if (line.empty()) continue;
        const std::vector<std::string> cells = split(line);
        const std::string where = path + ", line " + std::to_string(row);
        if (cells.size() != header.size())
            throw std::runtime_error(where + ": the number of columns is not that of the header");
        const long number = std::lround(number_in(cells[jet_column], where));
        if (jets.empty() || jets.back().number != number) {
            jets.emplace_back();
            jets.back().number = number;
            jets.back().columns.resize(names.size());
            for (size_t v = 0; v < names.size(); v++)
                if (!network.is_per_particle(v))
                    jets.back().columns[v].push_back(number_in(cells[columns[v]], where));
        }
        bool empty = true;
        for (size_t v = 0; v < names.size(); v++)
            empty &= !network.is_per_particle(v) || cells[columns[v]].empty();
        if (empty) continue;
        for (size_t v = 0; v < names.size(); v++)
            if (network.is_per_particle(v))
                jets.back().columns[v].push_back(number_in(cells[columns[v]], where));
        jets.back().size++;
    }
    return jets;
}
