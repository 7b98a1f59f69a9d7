// Functions of seeded_bugs.cu for its Python binding.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

extern const std::map<std::string, std::function<void(std::vector<double>&)>> seeded_bugs;

std::vector<float> convert(const std::vector<float>& values);
